"""A discrete-event simulation of a fleet: arrivals, ticks, autoscaling and node failures.

An image takes the service's path. It is admitted or refused; sent to the less busy of two random replicas if
that one has room (the rule of Ray Serve; Mitzenmacher 2001), else to the end of a queue before the replicas;
advanced by the ticks for which `select_next_batch` selects it; and sent once more if its node fails.

Of a fleet too large to simulate every replica, only some are simulated, each of which stands for `weight`
replicas. That works because replicas affect each other only through the random balancing and the autoscaling.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

from safelight.pipeline.capacity.fleet.fleet import Fleet
from safelight.pipeline.capacity.fleet.replica import SimulatedImage, SimulatedReplica
from safelight.pipeline.capacity.fleet.scaler import Scaler
from safelight.pipeline.capacity.fleet.traffic import arrivals
from safelight.pipeline.capacity.routing import less_busy_of_two
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.workload import make_workload

EventHandler = Callable[[float], None]  # called with the simulated time in seconds
RecordedArrival = tuple[float, int]  # time in seconds, index of the request class


@dataclass(slots=True)
class SimulationResult:
    """What happened in the simulated replicas; counts are theirs, `weight` times as many in the whole fleet.

    Attributes:
        seconds: length of the simulated span.
        weight: replicas of the fleet that each simulated replica stands for.
        latencies: seconds of every finished image from its arrival, all stages included.
        refused: images that admission refused.
        expired: images that finished after their deadline.
        resent: images that were sent again because their node failed.
        lost: images whose second node failed too.
        gpu_seconds: seconds of all replicas, busy or idle.
        busy_seconds: seconds of ticks.
        max_replicas: most replicas at an autoscaling decision.
        max_waiting: most images before the replicas at once.
        last_done: simulated time at which the last image left the denoiser.
    """

    seconds: float
    weight: float
    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    expired: int = 0
    resent: int = 0
    lost: int = 0
    gpu_seconds: float = 0.0
    busy_seconds: float = 0.0
    max_replicas: int = 0
    max_waiting: int = 0
    last_done: float = 0.0

    @property
    def images(self) -> float:
        """Finished images of the whole fleet."""
        return len(self.latencies) * self.weight

    def percentile(self, share: float) -> float:
        """The latency in seconds that `share` (0 to 1) of the images do not exceed; NaN if none finished."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


class Simulator:
    """One run of a fleet under a trace of requests.

    Handlers of events take `now`, the simulated time in seconds since the start.

    Args:
        fleet: the fleet and its request classes.
        rate: mean requests a second where the shape is 1.
        shape: how the rate changes over time, a name in `traffic.SHAPES`.
        seconds: length of the simulated span.
        seed: seed of arrivals, balancing and failures.
        followed_replicas: replicas to simulate, each of which stands for `fleet.gpus / followed_replicas`;
            0: all of them.
        recorded: arrivals in ascending order that replace those of `rate` and `shape`.
    """

    def __init__(
        self,
        fleet: Fleet,
        rate: float,
        shape: str,
        seconds: float,
        seed: int = 0,
        followed_replicas: int = 0,
        recorded: Sequence[RecordedArrival] = (),
    ):
        self.weight = max(1.0, fleet.gpus / followed_replicas) if followed_replicas else 1.0
        self.result = SimulationResult(seconds, self.weight)
        self._fleet = replace(fleet, max_in_flight=round(fleet.max_in_flight / self.weight))
        self._seconds = seconds
        self._rng = random.Random(seed)
        times = arrivals(rate / self.weight, shape, seconds, random.Random(seed + 1))
        self._arrivals = iter(recorded) if recorded else self._with_random_class(times)
        self._workloads = [
            make_workload(requests.rows, requests.work, requests.tokens, fleet.curve, 0.0)
            for requests in fleet.request_classes
        ]
        self._event_numbers = count()  # events at the same time run in the order in which they were scheduled
        self._events: list[tuple[float, int, EventHandler]] = []
        self._waiting: deque[SimulatedImage] = deque()
        self._scaler = _make_scaler(fleet, self.weight)
        self._replicas = [self._new_replica(0.0) for _ in range(self._scaler.target)]
        self._num_starting = 0
        self._offered_total = 0.0
        self._in_flight = 0

    def run(self, on_progress: Callable[[float], None] = lambda now: None) -> SimulationResult:
        """Simulate the whole span. Images that are still in the fleet at its end are not counted.

        `on_progress` is called with the simulated seconds at each autoscaling decision.
        """
        self._schedule_next_arrival()
        self._schedule(0.0, partial(self._autoscale, on_progress))
        while self._events:
            now, _, handle = heapq.heappop(self._events)
            if now > self._seconds:
                break
            handle(now)
        for replica in self._replicas:
            self.result.gpu_seconds += self._seconds - replica.started_at
        return self.result

    def _schedule(self, time: float, handle: EventHandler) -> None:
        heapq.heappush(self._events, (time, next(self._event_numbers), handle))

    def _schedule_next_arrival(self) -> None:
        if (arrival := next(self._arrivals, None)) is not None:
            time, class_index = arrival
            self._schedule(time, partial(self._arrive, class_index))

    def _with_random_class(self, times: Iterator[float]) -> Iterator[RecordedArrival]:
        shares = [requests.share for requests in self._fleet.request_classes]
        return ((time, self._rng.choices(range(len(shares)), shares)[0]) for time in times)

    def _arrive(self, class_index: int, now: float) -> None:
        self._schedule_next_arrival()
        if 0 < self._fleet.max_in_flight <= self._in_flight:
            self.result.refused += 1
            return
        workload = replace(self._workloads[class_index], arrived=now, deadline=now + self._fleet.deadline)
        self._in_flight += 1
        self._offered_total += workload.seconds_left[0]
        requests = self._fleet.request_classes[class_index]
        self._send(SimulatedImage(workload, other_stage_seconds=requests.other_stage_seconds), now)

    def _send(self, image: SimulatedImage, now: float) -> None:
        """Send an image to a replica with room, else to the end of the queue before the replicas."""
        replica = self._choose_replica()
        if replica is None:
            self._waiting.append(image)
            self.result.max_waiting = max(self.result.max_waiting, len(self._waiting))
            return
        replica.queue.add(image)
        if not replica.batch:
            self._start_ticks(replica, now)

    def _choose_replica(self) -> SimulatedReplica | None:
        """The less busy of two random replicas; None if it has no room (Serve tries no third one either)."""
        candidates = self._replicas
        if any(replica.is_leaving for replica in candidates):
            candidates = [replica for replica in candidates if not replica.is_leaving]
        if not candidates:
            return None
        less_busy = less_busy_of_two(self._rng, candidates, lambda replica: replica.num_images)
        return less_busy if less_busy.num_images < 2 * self._fleet.limits.max_rows else None

    def _start_ticks(self, replica: SimulatedReplica, now: float) -> None:
        """Select a batch and run it for up to `stride` ticks, fewer if an image needs fewer."""
        batch = select_next_batch(replica.running, replica.queue, now, self._fleet.limits, self._fleet.curve)
        if not batch:
            return
        for image in batch:
            if image.step_index == 0:
                replica.queue.remove(image)
                replica.running.append(image)
        ticks = min(self._fleet.stride, *(image.workload.num_ticks - image.step_index for image in batch))
        tick_work = sum(image.workload.work[image.step_index] for image in batch)
        seconds = ticks * self._fleet.curve.seconds_for(tick_work)
        replica.batch = batch
        for image in batch:
            image.ticks_under_way = ticks
        self.result.busy_seconds += seconds
        self._schedule(now + seconds, partial(self._end_ticks, replica))

    def _end_ticks(self, replica: SimulatedReplica, now: float) -> None:
        if replica.is_gone:
            return
        for image in replica.batch:
            image.step_index += image.ticks_under_way
            image.done_at = now
        replica.batch = []
        finished = [image for image in replica.running if image.step_index == image.workload.num_ticks]
        if finished:
            replica.running = [
                image for image in replica.running if image.step_index < image.workload.num_ticks
            ]
            for image in finished:
                self._finish(image)
            self._send_waiting(len(finished), now)
        if not replica.batch:
            if replica.num_images:
                self._start_ticks(replica, now)
            elif replica.is_leaving:
                self._remove(replica, now)

    def _finish(self, image: SimulatedImage) -> None:
        self._in_flight -= 1
        self.result.last_done = image.done_at
        latency = image.latency + image.other_stage_seconds
        if latency > self._fleet.deadline:
            self.result.expired += 1
        else:
            self.result.latencies.append(latency)

    def _send_waiting(self, max_images: int, now: float) -> None:
        """Send up to `max_images` of the waiting images; those that find no room wait again."""
        for _ in range(min(max_images, len(self._waiting))):
            self._send(self._waiting.popleft(), now)

    def _autoscale(self, on_progress: Callable[[float], None], now: float) -> None:
        self._schedule(now + self._fleet.scaling_interval_seconds, partial(self._autoscale, on_progress))
        on_progress(now)
        self._send_waiting(len(self._waiting), now)
        remaining_work = sum(replica.remaining_work for replica in self._replicas)
        queued_work = remaining_work + sum(image.seconds_left for image in self._waiting)
        target = self._scaler.decide(now, queued_work, self._offered_total)
        if self._in_flight and target == 0:
            target = 1
        staying = [replica for replica in self._replicas if not replica.is_leaving]
        for _ in range(max(0, target - len(staying) - self._num_starting)):
            self._num_starting += 1
            self._schedule(now + self._fleet.startup_seconds, self._replica_ready)
        surplus = max(0, len(staying) - target)
        for replica in sorted(staying, key=lambda replica: replica.num_images)[:surplus]:
            replica.is_leaving = True
            if not replica.num_images:
                self._remove(replica, now)
        self.result.max_replicas = max(self.result.max_replicas, len(self._replicas))

    def _replica_ready(self, now: float) -> None:
        self._num_starting -= 1
        self._replicas.append(self._new_replica(now))
        self._send_waiting(2 * self._fleet.limits.max_rows, now)

    def _new_replica(self, now: float) -> SimulatedReplica:
        replica = SimulatedReplica(now, WaitingQueue(self._fleet.curve.slowdown))
        if self._fleet.node_mtbf_seconds:
            lifetime = self._rng.expovariate(1.0 / self._fleet.node_mtbf_seconds)
            self._schedule(now + lifetime, partial(self._fail, replica))
        return replica

    def _fail(self, replica: SimulatedReplica, now: float) -> None:
        if replica.is_gone:
            return
        self._remove(replica, now)
        for image in [*replica.running, *replica.queue]:
            if image.is_retry:
                self._in_flight -= 1
                self.result.lost += 1
            else:
                self.result.resent += 1
                retry = SimulatedImage(
                    image.workload, other_stage_seconds=image.other_stage_seconds, is_retry=True
                )
                self._send(retry, now)

    def _remove(self, replica: SimulatedReplica, now: float) -> None:
        replica.is_gone = True
        self._replicas.remove(replica)
        self.result.gpu_seconds += now - replica.started_at


def _make_scaler(fleet: Fleet, weight: float) -> Scaler:
    """The scaler of the simulated replicas, each of which stands for `weight` of the fleet's."""
    max_replicas = max(1, round(fleet.gpus / weight))
    min_replicas = max(round(fleet.min_gpus / weight), 1 if fleet.min_gpus else 0)
    return Scaler(
        min_replicas=min(min_replicas, max_replicas),
        max_replicas=max_replicas,
        target_seconds=fleet.target_seconds,
        upscale_delay=fleet.upscale_delay,
        downscale_delay=fleet.downscale_delay,
        weight=weight,
    )
