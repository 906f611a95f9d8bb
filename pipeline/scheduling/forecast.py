"""When each sample will finish: the batcher's rule run ahead on the cost curve, arrivals extrapolated."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle

from safelight.pipeline.scheduling.batcher import Limits, Schedulable
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.fair_shares import FairShares
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import charge_by_curve, select_next_batch
from safelight.pipeline.scheduling.workload import SampleWorkload

STRIDE = 4  # ticks between two selections; the engine selects at every tick
MIN_ARRIVALS = 5  # requests from which an arrival rate is estimated
RECENT_ARRIVALS = 16  # samples that the arrival rate is estimated from
SAME_REQUEST_SECONDS = 0.01  # samples this close together are images of one request and count as one arrival
EXTRAPOLATION = 4.0  # arrivals are extrapolated for this many times the duration of the recent ones


@dataclass(slots=True, eq=False)
class ForecastSample:
    """A copy of a sample that the forecast advances; `number` is None for an extrapolated arrival."""

    number: int | None
    workload: SampleWorkload
    step_index: int


def finish_times(
    running: Iterable[Schedulable],
    waiting: Iterable[Schedulable],
    now: float,
    limits: Limits,
    curve: CostCurve,
    recent_arrivals: Sequence[SampleWorkload] = (),
    shares: FairShares | None = None,
) -> list[float]:
    """Forecast when each sample finishes.

    Args:
        running: Samples that have started.
        waiting: Samples that have not.
        now: Seconds by `time.perf_counter`.
        limits: The most that a tick may hold.
        curve: The cost curve at present.
        recent_arrivals: Workloads of recent samples in order of arrival; future ones are like them.
        shares: What each caller has had; None: all the same.

    Returns:
        Seconds from `now` until each sample finishes: first those of `running`, then those of `waiting`.
    """
    started, queue = _copy_samples(running, waiting, curve.slowdown)
    seconds = [0.0] * (len(started) + len(queue))
    started = [sample for sample in started if sample.step_index < sample.workload.num_ticks]
    num_unfinished = len(started) + len(queue)
    arrivals = deque(_future_arrivals(recent_arrivals, now))
    shares, time = FairShares() if shares is None else shares.copy(), now
    while num_unfinished:
        while arrivals and arrivals[0].workload.arrived <= time:
            queue.add(arrivals.popleft())
        selected = select_next_batch(started, queue, time, limits, curve, shares)
        ticks = min(STRIDE, *(sample.workload.num_ticks - sample.step_index for sample in selected))
        charge_by_curve(shares, selected, started, queue, curve, ticks)
        time += ticks * curve.seconds_for(sum(sample.workload.work[sample.step_index] for sample in selected))
        for number in _advance(selected, ticks, started, queue):
            seconds[number] = time - now
            num_unfinished -= 1
    return seconds


def _copy_samples(
    running: Iterable[Schedulable], waiting: Iterable[Schedulable], slowdown: float
) -> tuple[list[ForecastSample], WaitingQueue[ForecastSample]]:
    numbers = count()
    started = [ForecastSample(next(numbers), sample.workload, sample.step_index) for sample in running]
    queue = WaitingQueue[ForecastSample](slowdown)
    for sample in waiting:
        queue.add(ForecastSample(next(numbers), sample.workload, 0))
    return started, queue


def _advance(
    selected: Sequence[ForecastSample],
    ticks: int,
    started: list[ForecastSample],
    queue: WaitingQueue[ForecastSample],
) -> Iterator[int]:
    """Advance `selected` by `ticks`; yield the numbers of those that finish, extrapolated ones left out."""
    for sample in selected:
        if sample.step_index == 0:
            queue.remove(sample)
            started.append(sample)
        sample.step_index += ticks
        if sample.step_index == sample.workload.num_ticks:
            started.remove(sample)
            if sample.number is not None:
                yield sample.number


def _future_arrivals(recent_arrivals: Sequence[SampleWorkload], now: float) -> Iterator[ForecastSample]:
    """Samples like `recent_arrivals`, at their mean interval, which includes the time since the last."""
    times = [workload.arrived for workload in recent_arrivals]
    requests = [
        time
        for time, previous in zip(times, [-math.inf, *times], strict=False)
        if time - previous > SAME_REQUEST_SECONDS
    ]
    if len(requests) < MIN_ARRIVALS:
        return
    seconds = max(now, times[-1]) - times[0]
    interval = seconds / sum(time > times[0] + SAME_REQUEST_SECONDS for time in times)
    numbers = range(1, int(EXTRAPOLATION * seconds / interval) + 1)
    for number, workload in zip(numbers, cycle(recent_arrivals), strict=False):
        arrived = now + number * interval
        promise = workload.urgency.promise - workload.arrived + arrived
        urgency = replace(workload.urgency, promise=promise)
        future = replace(workload, arrived=arrived, deadline=math.inf, urgency=urgency)
        yield ForecastSample(None, future, 0)
