"""The plots of a report, as PNG bytes."""

import io
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

from loadtests.metrics_sampler import MetricsSeries
from loadtests.results import Phase

STAGES = ("encode", "denoise", "decode")
SampledPhase = tuple[Phase, MetricsSeries]


def latency_cdf(phases: Sequence[Phase]) -> bytes:
    """The cumulative distribution of latency, a line per phase."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for phase in phases:
        if phase.latencies:
            shares = [(number + 1) / len(phase.latencies) for number in range(len(phase.latencies))]
            axes.step(phase.latencies, shares, where="post", label=phase.name)
    axes.set(xlabel="latency, s", ylabel="share of requests", xscale="log", ylim=(0, 1))
    axes.legend(fontsize=8)
    return _png(figure)


def throughput(phases: Sequence[SampledPhase]) -> bytes:
    """Images finished per second, by the decoder's counter."""
    lines = [
        (phase.name, series.rates("safelight_stage_images_finished", "decode")) for phase, series in phases
    ]
    return _line_plot(lines, "throughput, images/s")


def rows_per_tick(phases: Sequence[SampledPhase]) -> bytes:
    """Rows in the denoiser's batches."""
    lines = [
        (phase.name, series.ratios("safelight_stage_rows", "safelight_stage_ticks", "denoise"))
        for phase, series in phases
    ]
    return _line_plot(lines, "rows per tick")


def utilisation(phases: Sequence[SampledPhase]) -> bytes:
    """Device-seconds of finished images per second, by stage: the mean over each phase."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for position, (_, series) in enumerate(phases):
        bottom = 0.0
        for stage, colour in zip(STAGES, ("#9ecae1", "#3182bd", "#08519c"), strict=True):
            share = busy_share(series, stage)
            axes.bar(position, share, bottom=bottom, color=colour, label=stage if position == 0 else None)
            bottom += share
    axes.set_xticks(range(len(phases)), [phase.name for phase, _ in phases], fontsize=8)
    axes.set(ylabel="device-seconds per second")
    axes.legend(fontsize=8)
    return _png(figure)


def busy_share(series: MetricsSeries, stage: str) -> float:
    """Device-seconds per second of a stage, between the first scrape and the last."""
    if len(series.samples) < 2:
        return 0.0
    first, last = series.samples[0], series.samples[-1]
    name = "safelight_image_device_seconds_total"
    return (last.value(name, stage) - first.value(name, stage)) / (last.at - first.at)


def _line_plot(lines: Sequence[tuple[str, list[tuple[float, float]]]], ylabel: str) -> bytes:
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for name, points in lines:
        axes.plot([at for at, _ in points], [value for _, value in points], label=name)
    axes.set(xlabel="seconds since the start of the phase", ylabel=ylabel, ylim=(0, None))
    axes.legend(fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, dpi=90)
    pyplot.close(figure)
    return out.getvalue()
