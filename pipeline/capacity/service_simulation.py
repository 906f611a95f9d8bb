"""One running service, simulated: what its gateway, stages and engine make of recorded arrivals.

What a cost curve alone does not know comes from measurements of the same service (`ServiceCosts`): the time
between ticks, stages that compete for cores (their seconds are measured while all of them work), and what the
gateway and the calls between stages take.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from safelight.pipeline.capacity.image_cost import ImageCost
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.simulation import FairPolicy, SimulatedEngine, SimulatedSample
from safelight.pipeline.scheduling.workload import make_workload


@dataclass(frozen=True, slots=True)
class ServiceCosts:
    """What a service's parts take, measured while it worked. Times are in seconds.

    Attributes:
        curve: Of the denoiser's ticks.
        limits: Of a tick.
        tick_ratios: How ticks deviate from the curve: (seconds over the curve's, weight).
        tick_overhead: Between two ticks, while there is work.
        gateway: Of one image before and after its stages, one image after another.
        encode: Of one image in the text encoder, one image after another.
        decode: Of one image in the decoder, likewise.
        transfer: Of one image between gateway and stages, in which it delays no other.
    """

    curve: CostCurve
    limits: Limits
    tick_ratios: Sequence[tuple[float, float]] = ((1.0, 1.0),)
    tick_overhead: float = 0.0
    gateway: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    transfer: float = 0.0


@dataclass(frozen=True, slots=True)
class SimulatedAnswer:
    """An image's times in seconds."""

    arrived: float
    done: float

    @property
    def latency(self) -> float:
        return self.done - self.arrived


def simulate_service(
    images: Sequence[tuple[float, ImageCost]], costs: ServiceCosts, seed: int = 0
) -> list[SimulatedAnswer]:
    """Send images through a service.

    Args:
        images: When each arrives, in order of time, and its work.
        costs: The service.
        seed: Of the deviations of ticks from the curve.

    Returns:
        The answers in the order of `images`.
    """
    accepted = in_turn([arrived for arrived, _ in images], costs.gateway / 2)
    encoded = in_turn(accepted, costs.encode)
    entering = [time + costs.transfer / 2 for time in encoded]
    denoised = _denoise([(time, cost) for time, (_, cost) in zip(entering, images, strict=True)], costs, seed)
    decoded = _in_order_of(denoised, lambda times: in_turn(times, costs.decode))
    leaving = [time + costs.transfer / 2 for time in decoded]
    answered = _in_order_of(leaving, lambda times: in_turn(times, costs.gateway / 2))
    return [SimulatedAnswer(arrived, done) for (arrived, _), done in zip(images, answered, strict=True)]


def in_turn(arrivals: Sequence[float], seconds: float) -> list[float]:
    """When each of `arrivals`, which rise, is done by a server that takes `seconds` for one after another."""
    return list(
        accumulate(arrivals[1:], lambda free, time: max(free, time) + seconds, initial=arrivals[0] + seconds)
    )


def _in_order_of(times: Sequence[float], serve: Callable[[Sequence[float]], list[float]]) -> list[float]:
    """What `serve` makes of `times` in ascending order, in the order of `times`."""
    order = sorted(range(len(times)), key=times.__getitem__)
    results = [0.0] * len(times)
    for index, result in zip(order, serve([times[index] for index in order]), strict=True):
        results[index] = result
    return results


def _denoise(images: Sequence[tuple[float, ImageCost]], costs: ServiceCosts, seed: int) -> list[float]:
    """When the engine is done with each image."""
    curve = costs.curve
    ratios, weights = zip(*costs.tick_ratios, strict=True)
    rng = random.Random(seed)
    samples = []
    for time, cost in images:
        workload = make_workload([cost.rows] * len(cost.ticks), cost.ticks, cost.tokens, curve, time)
        samples.append(SimulatedSample(workload))
    waiting = sorted(samples, key=lambda sample: sample.workload.arrived, reverse=True)
    engine, now = SimulatedEngine(FairPolicy(costs.limits, curve), curve), 0.0
    while waiting or engine.num_samples:
        if not engine.num_samples:
            now = max(now, waiting[-1].workload.arrived)
        while waiting and waiting[-1].workload.arrived <= now:
            engine.arrive(waiting.pop(), now)
        seconds = engine.start_ticks(now)
        if seconds is not None:
            [ratio] = rng.choices(ratios, weights)
            now += ratio * seconds + costs.tick_overhead
            engine.end_ticks(now)
    return [sample.done_at for sample in samples]


def with_ratios_of_mean(ratios: Sequence[tuple[float, float]], mean: float) -> list[tuple[float, float]]:
    """The same ratios scaled so that their weighted mean is `mean`."""
    weight = sum(part for _, part in ratios)
    scale = mean * weight / sum(ratio * part for ratio, part in ratios)
    return [(scale * ratio, part) for ratio, part in ratios]
