"""Results of requests, and what follows from them for a load phase: throughput, percentiles and faults."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The outcome of one request. Times are in seconds from the start of the replay."""

    due: float  # when the schedule said to send it
    sent: float
    done: float
    status: int  # HTTP status; 0 if there was no answer at all
    fault: str | None  # what is wrong with the answer, or why there is none
    images: int
    device_seconds: float  # as reported in the answer
    nfe: int  # as reported in the answer

    @property
    def latency(self) -> float:
        return self.done - self.due

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.fault is None


@dataclass(frozen=True, slots=True)
class Phase:
    """One load phase: the offered load, and the result of every request."""

    name: str
    offered_per_hour: float  # images requested per hour
    results: tuple[RequestResult, ...]

    @property
    def good(self) -> list[RequestResult]:
        return [result for result in self.results if result.is_good]

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(result.done for result in self.results) - self.results[0].due

    @property
    def images_per_hour(self) -> float:
        return 3600.0 * sum(result.images for result in self.good) / self.seconds

    @property
    def latencies(self) -> list[float]:
        """Latencies of the good requests in seconds, sorted."""
        return sorted(result.latency for result in self.good)

    @property
    def faults(self) -> Mapping[str, int]:
        """How often each fault occurred."""
        return Counter(result.fault or str(result.status) for result in self.results if not result.is_good)

    def percentile(self, percent: float) -> float:
        """A percentile of the latencies in seconds."""
        return percentile(self.latencies, percent)

    def as_dict(self) -> dict[str, object]:
        """The phase for JSON, under the keys of `report.json`."""
        return {
            "name": self.name,
            "offered_per_hour": round(self.offered_per_hour, 1),
            "images_per_hour": round(self.images_per_hour, 1),
            "requests": len(self.results),
            "faults": dict(self.faults),
            "p50_s": self.percentile(50),
            "p95_s": self.percentile(95),
            "p99_s": self.percentile(99),
            "mean_s": statistics.fmean(self.latencies) if self.latencies else None,
            "device_seconds": sum(result.device_seconds for result in self.good),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of `values` by linear interpolation between sorted neighbours; NaN if there are none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100.0
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
