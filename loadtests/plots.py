"""The plots of a report, as PNG bytes."""

import io
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

from loadtests.figures import Phase
from loadtests.watch import Watched

STAGES = ("encode", "denoise", "decode")


def latency_cdf(phases: Sequence[Phase]) -> bytes:
    """The share of requests that took at most so long."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for phase in phases:
        if phase.latencies:
            shares = [(number + 1) / len(phase.latencies) for number in range(len(phase.latencies))]
            axes.step(phase.latencies, shares, where="post", label=phase.name)
    axes.set(
        xlabel="seconds from when a request was due", ylabel="share of requests", xscale="log", ylim=(0, 1)
    )
    axes.legend(fontsize=8)
    return _png(figure)


def throughput(phases: Sequence[tuple[Phase, Watched]]) -> bytes:
    """Images finished a second, as the decoder counted them."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for phase, watched in phases:
        found = watched.rates("safelight_stage_images_finished", "decode")
        axes.plot([at for at, _ in found], [rate for _, rate in found], label=phase.name)
    axes.set(xlabel="seconds of the phase", ylabel="images a second", ylim=(0, None))
    axes.legend(fontsize=8)
    return _png(figure)


def rows_per_tick(phases: Sequence[tuple[Phase, Watched]]) -> bytes:
    """How full the denoiser's batches were."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for phase, watched in phases:
        found = watched.ratios("safelight_stage_rows", "safelight_stage_ticks", "denoise")
        axes.plot([at for at, _ in found], [rows for _, rows in found], label=phase.name)
    axes.set(xlabel="seconds of the phase", ylabel="rows a tick", ylim=(0, None))
    axes.legend(fontsize=8)
    return _png(figure)


def utilisation(phases: Sequence[tuple[Phase, Watched]]) -> bytes:
    """Device seconds of images that were sent, a second of the phase, by stage: their mean over the phase."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    for place, (_, watched) in enumerate(phases):
        bottom = 0.0
        for stage, colour in zip(STAGES, ("#9ecae1", "#3182bd", "#08519c"), strict=True):
            share = busy_share(watched, stage)
            axes.bar(place, share, bottom=bottom, color=colour, label=stage if place == 0 else None)
            bottom += share
    axes.set_xticks(range(len(phases)), [phase.name for phase, _ in phases], fontsize=8)
    axes.set(ylabel="device seconds a second")
    axes.legend(fontsize=8)
    return _png(figure)


def busy_share(watched: Watched, stage: str) -> float:
    """Device seconds a second between the first look and the last."""
    if len(watched.looks) < 2:
        return 0.0
    first, last = watched.looks[0], watched.looks[-1]
    name = "safelight_image_device_seconds_total"
    return (last.of(name, stage) - first.of(name, stage)) / (last.at - first.at)


def _png(figure) -> bytes:
    figure.tight_layout()
    out = io.BytesIO()
    figure.savefig(out, dpi=90)
    pyplot.close(figure)
    return out.getvalue()
