"""Thresholds for a load test, and the verdict on each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtests.results import Phase


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a run must reach. A threshold of None is not checked."""

    min_images_per_hour: float | None = None  # in the saturated phase
    max_p95_s: float | None = None  # in the steady phase
    max_p95_times_alone: float | None = None  # steady p95 over the p95 of one request at a time
    max_failures: int | None = 0  # over all phases; a 429 for a full queue counts as one
    min_share_of_bench: float | None = None  # saturated throughput over that of the engine alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one threshold was met, with the required and the measured value as text."""

    name: str
    required: str
    measured: str
    is_met: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON, under the keys of `report.json`."""
        return {"name": self.name, "wanted": self.required, "got": self.measured, "is_met": self.is_met}


def judge(
    thresholds: Thresholds,
    alone: Phase,
    saturated: Phase,
    steady: Phase,
    other_phases: Sequence[Phase],
    engine_images_per_hour: float | None,
) -> list[Verdict]:
    """The verdict on every threshold that is set.

    Args:
        thresholds: what is required.
        alone: the mix sent one request at a time.
        saturated: the phase with more requests than the service can handle.
        steady: the phase at a steady share of the saturated throughput.
        other_phases: phases that only count towards the failures.
        engine_images_per_hour: throughput of the engine alone, if it was measured.
    """
    verdicts = [*_judge_throughput(thresholds, saturated), *_judge_latency(thresholds, alone, steady)]
    if thresholds.max_failures is not None:
        phases = (alone, saturated, steady, *other_phases)
        failures = sum(len(phase.results) - len(phase.good) for phase in phases)
        limit = thresholds.max_failures
        verdicts.append(
            Verdict("failures and refusals", f"at most {limit}", str(failures), failures <= limit)
        )
    if thresholds.min_share_of_bench is not None and engine_images_per_hour:
        share = saturated.images_per_hour / engine_images_per_hour
        min_share = thresholds.min_share_of_bench
        target = f"at least {min_share:.0%} of the engine alone ({engine_images_per_hour:.0f} images/h)"
        verdicts.append(Verdict("throughput over HTTP", target, f"{share:.0%}", share >= min_share))
    return verdicts


def _judge_throughput(thresholds: Thresholds, saturated: Phase) -> Iterator[Verdict]:
    if thresholds.min_images_per_hour is not None:
        required, measured = thresholds.min_images_per_hour, saturated.images_per_hour
        yield Verdict(
            "throughput, saturated",
            f"at least {required:.0f} images/h",
            f"{measured:.0f} images/h",
            measured >= required,
        )


def _judge_latency(thresholds: Thresholds, alone: Phase, steady: Phase) -> Iterator[Verdict]:
    name = f"latency p95, {steady.name}"
    p95 = steady.percentile(95)
    if thresholds.max_p95_s is not None:
        yield Verdict(
            name, f"at most {thresholds.max_p95_s:g} s", f"{p95:.2f} s", p95 <= thresholds.max_p95_s
        )
    if thresholds.max_p95_times_alone is not None:
        ratio = p95 / alone.percentile(95)
        limit = thresholds.max_p95_times_alone
        required = f"at most {limit:g} times the p95 of the same mix one at a time"
        yield Verdict(name, required, f"{ratio:.2f} times", ratio <= limit)
