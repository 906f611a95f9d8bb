"""Histograms that can be sent between processes and added."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HistogramData:
    """Counts of observed values by bucket, and their sum.

    Bucket `i` holds the values in `(bounds[i - 1], bounds[i]]`; the last bucket, the values above all bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> HistogramData:
        return cls(bounds, (0,) * (len(bounds) + 1))

    def with_value(self, value: float) -> HistogramData:
        """The histogram with one more value."""
        counts = list(self.counts)
        counts[bisect_left(self.bounds, value)] += 1
        return HistogramData(self.bounds, tuple(counts), self.total + value)

    def __add__(self, other: HistogramData) -> HistogramData:
        return HistogramData(
            self.bounds,
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
            self.total + other.total,
        )

    def __sub__(self, other: HistogramData) -> HistogramData:
        return HistogramData(
            self.bounds,
            tuple(a - b for a, b in zip(self.counts, other.counts, strict=True)),
            self.total - other.total,
        )


class Histogram:
    """A histogram that counts values as they are observed."""

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def data(self) -> HistogramData:
        return HistogramData(self._bounds, tuple(self._counts), self._total)


REQUEST_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
TICK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
TICK_ROWS = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
TICK_TOKENS = (64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)
TICK_FORECAST = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class TickHistogramData:
    """A denoiser's ticks: seconds, rows and image tokens, and measured over forecast seconds."""

    seconds: HistogramData = field(default_factory=lambda: HistogramData.empty(TICK_SECONDS))
    rows: HistogramData = field(default_factory=lambda: HistogramData.empty(TICK_ROWS))
    tokens: HistogramData = field(default_factory=lambda: HistogramData.empty(TICK_TOKENS))
    forecast: HistogramData = field(default_factory=lambda: HistogramData.empty(TICK_FORECAST))

    def __add__(self, other: TickHistogramData) -> TickHistogramData:
        return TickHistogramData(
            self.seconds + other.seconds,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.forecast + other.forecast,
        )

    def __sub__(self, other: TickHistogramData) -> TickHistogramData:
        return TickHistogramData(
            self.seconds - other.seconds,
            self.rows - other.rows,
            self.tokens - other.tokens,
            self.forecast - other.forecast,
        )


class TickHistograms:
    """The histograms of a denoiser's ticks while it runs."""

    def __init__(self) -> None:
        self._seconds, self._rows = Histogram(TICK_SECONDS), Histogram(TICK_ROWS)
        self._tokens, self._forecast = Histogram(TICK_TOKENS), Histogram(TICK_FORECAST)

    def observe(self, seconds: float, rows: int, tokens: int, expected_seconds: float) -> None:
        """Count one tick; `expected_seconds` is the cost curve's forecast, 0 if there was none."""
        self._seconds.observe(seconds)
        self._rows.observe(rows)
        self._tokens.observe(tokens)
        if expected_seconds > 0:
            self._forecast.observe(seconds / expected_seconds)

    @property
    def data(self) -> TickHistogramData:
        return TickHistogramData(self._seconds.data, self._rows.data, self._tokens.data, self._forecast.data)
