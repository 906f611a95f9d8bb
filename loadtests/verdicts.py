"""Thresholds for a load test, and the verdict on each.

A machine that is too slow for a threshold does not fail it: the verdict is then "not reachable here", with
the measurement that shows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.core_seconds import CoreSeconds
from loadtests.results import Phase

# A denoiser that shares each of its cores with one other process has half of its speed.
MIN_REACHABLE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a run must reach. A threshold of None is not checked."""

    min_images_per_hour: float | None = None  # in the saturated phase
    max_p95_s: float | None = None  # in the steady phase
    max_p95_times_alone: float | None = None  # steady p95 over the p95 of one request at a time
    max_failures: int | None = 0  # over all phases; a 429 for a full queue counts as one
    min_share_of_bench: float | None = None  # saturated throughput over what is reachable (`EngineAlone`)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one threshold was met, with the required and the measured value as text."""

    name: str
    required: str
    measured: str
    is_met: bool | None  # None: it cannot be reached on this machine
    reason: str = ""  # why it cannot, or how the required value came about

    def as_dict(self) -> dict[str, object]:
        """For JSON, under the keys of `report.json`."""
        return {
            "name": self.name,
            "wanted": self.required,
            "got": self.measured,
            "is_met": self.is_met,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class EngineAlone:
    """The engine's throughput without HTTP, and how much of it is reachable when others share its cores.

    The engine alone has a thread on every core, and its threads wait for each other at every operation. So a
    second that another process has on one of the cores is lost for all of them, but never more than half of
    the time.
    """

    images_per_hour: float
    core_seconds: CoreSeconds  # of the saturated phase

    def reachable_share(self, images: int) -> float:
        """The share of `images_per_hour` that is reachable, if `images` were drawn in `core_seconds`."""
        if self.core_seconds.others <= 0.0:
            return 1.0
        seconds = 3600.0 * images / self.images_per_hour
        return max(MIN_REACHABLE_SHARE, seconds / (seconds + self.core_seconds.others))

    def reason(self, images: int) -> str:
        used = self.core_seconds
        return (
            f"the engine alone draws {self.images_per_hour:.0f} images/h on {used.cores} cores, of which "
            f"{self.reachable_share(images):.0%} are reachable: for {images} images, processes other than "
            f"the denoiser needed {used.others:.1f} core-seconds ({used.as_text()})"
        )


def judge(
    thresholds: Thresholds,
    alone: Phase,
    saturated: Phase,
    steady: Phase,
    other_phases: Sequence[Phase],
    engine: EngineAlone | None,
) -> list[Verdict]:
    """The verdict on every threshold that is set.

    Args:
        thresholds: what is required.
        alone: the mix sent one request at a time.
        saturated: the phase with more requests than the service can handle.
        steady: the phase at a steady share of the saturated throughput.
        other_phases: phases that only count towards the failures.
        engine: the engine alone, if it was measured.
    """
    verdicts = [*_judge_throughput(thresholds, saturated, engine), *_judge_latency(thresholds, alone, steady)]
    if thresholds.max_failures is not None:
        # A replayed trace is a single phase in all three places.
        phases = {id(phase): phase for phase in (alone, saturated, steady, *other_phases)}.values()
        failures = sum(len(phase.results) - len(phase.good) for phase in phases)
        limit = thresholds.max_failures
        verdicts.append(
            Verdict("failures and refusals", f"at most {limit}", str(failures), failures <= limit)
        )
    return verdicts


def _judge_throughput(
    thresholds: Thresholds, saturated: Phase, engine: EngineAlone | None
) -> Iterator[Verdict]:
    measured, num_images = saturated.images_per_hour, sum(result.images for result in saturated.good)
    if thresholds.min_images_per_hour is not None:
        required = thresholds.min_images_per_hour
        is_reachable = engine is None or required <= engine.images_per_hour * engine.reachable_share(
            num_images
        )
        yield Verdict(
            "throughput, saturated",
            f"at least {required:.0f} images/h",
            f"{measured:.0f} images/h",
            _is_met(measured >= required, is_reachable),
            engine.reason(num_images) if engine and not is_reachable else "",
        )
    if thresholds.min_share_of_bench is not None and engine is not None:
        share = measured / engine.images_per_hour
        required = thresholds.min_share_of_bench * engine.reachable_share(num_images)
        target = f"at least {required:.0%} of the engine alone"
        reason = f"{thresholds.min_share_of_bench:.0%} of what is reachable; {engine.reason(num_images)}"
        yield Verdict("throughput over HTTP", target, f"{share:.0%}", share >= required, reason)


def _judge_latency(thresholds: Thresholds, alone: Phase, steady: Phase) -> Iterator[Verdict]:
    name = f"latency p95, {steady.name}"
    p95, alone_p95 = steady.percentile(95), alone.percentile(95)
    if thresholds.max_p95_s is not None:
        is_reachable = not alone_p95 > thresholds.max_p95_s
        yield Verdict(
            name,
            f"at most {thresholds.max_p95_s:g} s",
            f"{p95:.2f} s",
            _is_met(p95 <= thresholds.max_p95_s, is_reachable),
            "" if is_reachable else f"one request at a time, without a queue, has a p95 of {alone_p95:.2f} s",
        )
    if thresholds.max_p95_times_alone is not None:
        ratio = p95 / alone_p95
        limit = thresholds.max_p95_times_alone
        required = f"at most {limit:g} times the p95 of the same mix one at a time"
        yield Verdict(name, required, f"{ratio:.2f} times", ratio <= limit)


def _is_met(is_met: bool, is_reachable: bool) -> bool | None:
    return is_met if is_met or is_reachable else None
