"""From results to figures, and from figures to a verdict."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from loadtests.replay import Result


@dataclass(frozen=True, slots=True)
class Phase:
    """One load and what came of it."""

    name: str
    offered_per_hour: float  # images asked for
    results: tuple[Result, ...]

    @property
    def good(self) -> list[Result]:
        return [result for result in self.results if result.is_good]

    @property
    def seconds(self) -> float:
        """From the first arrival to the last answer."""
        return max(result.done for result in self.results) - self.results[0].due

    @property
    def images_per_hour(self) -> float:
        return 3600.0 * sum(result.images for result in self.good) / self.seconds

    @property
    def latencies(self) -> list[float]:
        return sorted(result.latency for result in self.good)

    @property
    def faults(self) -> Mapping[str, int]:
        """How often what went wrong."""
        return Counter(result.fault or str(result.status) for result in self.results if not result.is_good)

    def percentile(self, percent: float) -> float:
        return percentile(self.latencies, percent)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a run must reach; None is not asked for."""

    min_images_per_hour: float | None = None  # saturated
    max_p95_s: float | None = None  # at the steady load
    max_p95_times_alone: float | None = (
        None  # the same, as a multiple of the p95 of the same mix one at a time
    )
    max_failures: int | None = 0  # over all phases; a refusal for want of room is one too
    min_share_of_bench: float | None = None  # of what the engine alone reached in the same run


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold, held or not, and by how much."""

    name: str
    wanted: str
    got: str
    is_met: bool


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the sorted `values`; NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100.0
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def judge(
    thresholds: Thresholds,
    alone: Phase,
    saturated: Phase,
    steady: Phase,
    others: Sequence[Phase],
    bench: float | None,
) -> list[Verdict]:
    """Every threshold that is set; `bench` is the engine's own images an hour, if it was measured."""
    verdicts = []
    failures = sum(len(phase.results) - len(phase.good) for phase in (alone, saturated, steady, *others))
    p95, times = steady.percentile(95), steady.percentile(95) / alone.percentile(95)
    if thresholds.min_images_per_hour is not None:
        got = saturated.images_per_hour
        verdicts.append(
            Verdict(
                "images per hour, saturated",
                f"at least {thresholds.min_images_per_hour:.0f}",
                f"{got:.0f}",
                got >= thresholds.min_images_per_hour,
            )
        )
    if thresholds.max_p95_s is not None:
        verdicts.append(
            Verdict(
                f"p95, {steady.name}",
                f"at most {thresholds.max_p95_s:g} s",
                f"{p95:.2f} s",
                p95 <= thresholds.max_p95_s,
            )
        )
    if thresholds.max_p95_times_alone is not None:
        wanted = f"at most {thresholds.max_p95_times_alone:g} times that of the same mix one at a time"
        verdicts.append(
            Verdict(
                f"p95, {steady.name}", wanted, f"{times:.2f} times", times <= thresholds.max_p95_times_alone
            )
        )
    if thresholds.max_failures is not None:
        verdicts.append(
            Verdict(
                "failures and refusals",
                f"at most {thresholds.max_failures}",
                str(failures),
                failures <= thresholds.max_failures,
            )
        )
    if thresholds.min_share_of_bench is not None and bench:
        share = saturated.images_per_hour / bench
        wanted = f"at least {thresholds.min_share_of_bench:.0%} of the engine's own {bench:.0f}"
        verdicts.append(
            Verdict(
                "images per hour over HTTP", wanted, f"{share:.0%}", share >= thresholds.min_share_of_bench
            )
        )
    return verdicts


def summary(phase: Phase) -> dict[str, object]:
    """For JSON."""
    return {
        "name": phase.name,
        "offered_per_hour": round(phase.offered_per_hour, 1),
        "images_per_hour": round(phase.images_per_hour, 1),
        "requests": len(phase.results),
        "faults": dict(phase.faults),
        "p50_s": phase.percentile(50),
        "p95_s": phase.percentile(95),
        "p99_s": phase.percentile(99),
        "mean_s": statistics.fmean(phase.latencies) if phase.latencies else None,
        "device_seconds": sum(result.device_seconds for result in phase.good),
    }


def as_dicts(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    return [asdict(verdict) for verdict in verdicts]
