"""The bars that figures are held to, and where a machine is known not to reach one.

`safelight bench --check` and the commands in `tests/bench` judge their figures by these, and the documents
print them from here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Figures = Mapping[str, Any]  # as in the `figures` of a benchmark's record


@dataclass(frozen=True, slots=True)
class KnownMiss:
    """A bar that was shown to be out of reach on one kind of machine."""

    limit: float  # held to in place of the bar, so that it gets no worse
    reason: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit on one figure, set before it was measured.

    Attributes:
        name: what is limited, in words.
        limit: the least or the most that is allowed.
        is_minimum: whether `limit` is the least.
        unit: how values are printed, a key of `FORMATS`.
        figure: reads the value; None or a missing key where a run did not measure it.
        known_misses: by `Machine.kind`.
    """

    name: str
    limit: float
    is_minimum: bool
    unit: str
    figure: Callable[[Figures], float | None]
    known_misses: Mapping[str, KnownMiss] = field(default_factory=dict)

    def allows(self, value: float, limit: float | None = None) -> bool:
        """Whether `value` is within the bar, or within another `limit` of the same direction."""
        limit = self.limit if limit is None else limit
        return value >= limit if self.is_minimum else value <= limit

    def as_text(self, limit: float | None = None) -> str:
        """`at least 1.8`, say."""
        text = FORMATS[self.unit](self.limit if limit is None else limit)
        return f"at {'least' if self.is_minimum else 'most'} {text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bar and the figure that was measured."""

    bar: Bar
    value: float
    known_miss: KnownMiss | None = None

    @property
    def is_met(self) -> bool:
        return self.bar.allows(self.value)

    @property
    def is_failure(self) -> bool:
        """Missed where it can be reached, or by more than it is known to be missed here."""
        if self.is_met:
            return False
        return self.known_miss is None or not self.bar.allows(self.value, self.known_miss.limit)

    @property
    def text(self) -> str:
        """The verdict in words."""
        if self.is_met:
            return "met"
        if self.known_miss is None:
            return "missed"
        limit = self.bar.as_text(self.known_miss.limit)
        return f"missed by more than is known: {limit}" if self.is_failure else f"missed, as known: {limit}"

    @property
    def reason(self) -> str:
        """Why the bar is out of reach on this kind of machine; empty where it is not."""
        return self.known_miss.reason if self.known_miss and not self.is_met else ""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """A row of the table of bars: name, bar, figure, verdict."""
        return self.bar.name, self.bar.as_text(), FORMATS[self.bar.unit](self.value), self.text


VERDICT_HEADER = ("figure", "bar", "measured", "verdict")


def judge(bars: Iterable[Bar], figures: Figures, kind: str) -> list[Verdict]:
    """The verdict on every bar whose figure was measured, on a machine of this kind."""
    measured = ((bar, value_of(bar, figures)) for bar in bars)
    return [Verdict(bar, value, bar.known_misses.get(kind)) for bar, value in measured if value is not None]


def value_of(bar: Bar, figures: Figures) -> float | None:
    """The value that a bar limits; None where it was not measured."""
    try:
        return bar.figure(figures)
    except (KeyError, TypeError):  # a figure that this run left out
        return None


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """1 if a bar was missed that can be reached, or nothing was judged."""
    return int(not verdicts or any(verdict.is_failure for verdict in verdicts))


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each bar that is known to be out of reach, without repetition."""
    return list(
        dict.fromkeys(f"{verdict.bar.name}: {verdict.reason}" for verdict in verdicts if verdict.reason)
    )


FORMATS: dict[str, Callable[[float], str]] = {
    "times": lambda value: f"{value:.2f}",
    "share": lambda value: f"{100 * value:.3g} %",
    "dB": lambda value: f"{value:.1f} dB",
    "absolute": lambda value: f"{value:.1e}",
    "seconds": lambda value: f"{value:.3g} s",
    "count": lambda value: f"{value:,.0f}",
}


def _alone(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures["batch1"][name] / figures["batch1"]["ours_s"]


def _throughput(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: (
        figures["mixed"]["ours"]["images_per_hour"] / figures["mixed"][name]["images_per_hour"]
    )


def _latency(percentile: str) -> Callable[[Figures], float | None]:
    """The engine's latency over the lowest of the other ways of serving."""

    def ratio(figures: Figures) -> float:
        ways = {name: way for name, way in figures["mixed"].items() if way is not None}
        ours = ways.pop("ours")
        return float(ours[percentile]) / min(float(way[percentile]) for way in ways.values())

    return ratio


SMALL_OPERATIONS = (
    "two fifths of a tick of two rows are some 1,500 small operations; fewer views were kept, compiled "
    "steps and compiled blocks cost more than they saved"
)
FAST_PRODUCTS = "matrix products are so fast here that everything else takes most of a tick"
BENCH_BARS = (
    Bar(
        "speed-up over diffusers, one image alone", 1.8, True, "times", _alone("diffusers_eager_s"),
        {
            "AVX-512 bf16": KnownMiss(1.4, SMALL_OPERATIONS),
            "AMX": KnownMiss(1.4, FAST_PRODUCTS),
        },
    ),
    Bar(
        "speed-up over compiled diffusers, one image alone", 1.2, True, "times",
        _alone("diffusers_compiled_s"),
        {
            "AVX-512 bf16": KnownMiss(1.0, SMALL_OPERATIONS),
            "AMX": KnownMiss(1.0, FAST_PRODUCTS),
        },
    ),
    Bar("throughput over diffusers, one at a time", 2.2, True, "times", _throughput("serial_eager")),
    Bar(
        "throughput over compiled diffusers, one at a time", 1.7, True, "times",
        _throughput("serial_compiled"),
    ),
    Bar("throughput over diffusers, better static batches", 1.5, True, "times", _throughput("static_best")),
    Bar("latency p50 over the best of diffusers, same load", 1.0, False, "times", _latency("p50_s")),
    Bar("latency p95 over the best of diffusers, same load", 1.0, False, "times", _latency("p95_s")),
    Bar(
        "MFU, full ticks", 0.65, True, "share", lambda figures: figures["mfu"],
        {
            "AVX-512 bf16": KnownMiss(
                0.5, "a quarter of a full tick is attention, norms, views and Python, not linear layers"
            ),
            "AMX": KnownMiss(0.15, FAST_PRODUCTS),
        },
    ),
    Bar("time outside the network, full ticks", 0.03, False, "share", lambda f: f["bookkeeping_share"]),
    Bar("decoding, share of the time of one image", 0.2, False, "share", lambda f: f["decode_share"]),
    Bar("forecast error of latency, median", 0.15, False, "share", lambda f: f["forecast_error"]),
    Bar("slowdown behind 4 long requests", 1.5, False, "times", lambda figures: figures["head_of_line"]),
    Bar(
        "largest latent error in float32 against diffusers", 1e-3, False, "absolute",
        lambda figures: figures["fidelity"]["float32_error"],
    ),
    Bar(
        "PSNR against diffusers in float32", 30.0, True, "dB", lambda figures: figures["fidelity"]["psnr_db"]
    ),
)  # fmt: skip


def _update(shape: str) -> Callable[[Figures], float | None]:
    def ratio(figures: Figures) -> float | None:
        value: float | None = figures["update_over_pass"][shape]
        return value

    return ratio


UPDATE_BARS = tuple(
    Bar(f"update over one memory pass, 64 × {shape}", 2.0, False, "times", _update(shape))
    for shape in ("(8, 16, 16)", "(16, 32, 32)", "(4, 128, 128)")
)

SHARED_CORES = (
    "the service's processes take each other's cores on this machine, which a forecast from cost curves "
    "does not know"
)


def _largest_error(forecaster: str) -> Callable[[Figures], float | None]:
    def largest(figures: Figures) -> float | None:
        errors = [abs(row["off"]) for row in figures["comparisons"] if row["by"] == forecaster]
        return max(errors, default=None)

    return largest


FORECAST_BARS = (
    Bar(
        "largest error of the simulator", 0.20, False, "share", _largest_error("the simulator"),
        {"AMX": KnownMiss(0.35, SHARED_CORES)},
    ),
    Bar(
        "largest error of `safelight plan`", 0.15, False, "share", _largest_error("safelight plan"),
        {"AMX": KnownMiss(0.5, SHARED_CORES)},
    ),
)  # fmt: skip


def _largest(key: str) -> Callable[[Figures], float | None]:
    return lambda figures: max((abs(row[key]) for row in figures["comparisons"]), default=None)


SIMULATOR_BARS = (
    Bar("error of the simulated throughput", 0.10, False, "share", _largest("throughput_error")),
    Bar("error of the simulated p95", 0.10, False, "share", _largest("p95_error")),
)

STREAMING_BARS = (
    Bar(
        "throughput cost of two previews an image, as many as are drawn under load", 0.03, False, "share",
        lambda figures: figures["throughput_cost"],
    ),
    Bar(
        "first preview of an image alone, share of its latency", 0.30, False, "share",
        lambda figures: figures["first_preview_share"],
    ),
)  # fmt: skip


def _best_run(name: str, best: Callable[[Iterable[float]], float], in_flight: int | None = None) -> Any:
    """The best value of a figure over the runs, or over those with one number of images in flight."""

    def value(figures: Figures) -> float | None:
        runs = [run for run in figures["runs"] if in_flight in (None, run["in_flight"])]
        return best(run[name] for run in runs) if runs else None

    return value


# Of the project, for images of 1024x1024 of a published model on one GPU.
RANDOM_WEIGHTS_BARS = (
    Bar("latency of one image alone, decoded", 5.0, False, "seconds", _best_run("latency_s", min, 1)),
    Bar("images an hour of one device", 1000.0, True, "count", _best_run("images_per_hour", max)),
)
