"""Draws docs/bench.png: a row of panels for each machine on which `safelight bench` was run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs.figures.data import Run
from docs.figures.performance import HEADINGS, MACHINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WAYS = {
    "ours": "this engine",
    "serial_eager": "diffusers,\none at\na time",
    "serial_compiled": "one at\na time,\ncompiled",
    "static_best": "diffusers,\nstatic\nbatches",
}
ALONE = {
    "ours_s": "this engine",
    "diffusers_eager_s": "diffusers",
    "diffusers_compiled_s": "diffusers,\ncompiled",
}
TITLES = {
    "alone": "latency of one image alone, s",
    "throughput": "throughput of mixed requests, images/h",
    "latency": "latency under this load, s",
    "curve": "seconds of a tick, per row",
}
OURS, OTHERS, SHADES = "#1b6ca8", "#b0b0b0", {"p50": "#7fb2d6", "p95": "#1b6ca8"}
DIGEST = "Figures"  # key of the digest in the PNG's text
Content = dict[str, Any]  # everything that is drawn, texts included


def content(runs: Sequence[Run]) -> Content:
    """The values and texts of the plot; its digest says whether a plot is of these figures."""
    chosen = [run for folder in MACHINES for run in runs if (run.folder, run.name) == (folder, "bench")]
    return {f"{HEADINGS[run.folder]}, {run.record['date']}": _row(run.figures) for run in chosen}


def _row(figures: Mapping[str, Any]) -> Content:
    alone = {ALONE[name]: value for name, value in figures["batch1"].items() if value}
    mixed = {label: figures["mixed"][name] for name, label in WAYS.items() if figures["mixed"].get(name)}
    panels: Content = {
        TITLES["alone"]: alone,
        TITLES["throughput"]: {label: way["images_per_hour"] for label, way in mixed.items()},
        TITLES["latency"]: {
            percentile: {label: way[f"{percentile}_s"] for label, way in mixed.items()}
            for percentile in SHADES
        },
    }
    if curve := figures.get("curve"):
        rows = [work / curve["work"][0] for work in curve["work"]]
        panels[TITLES["curve"]] = [
            [count, seconds / count] for count, seconds in zip(rows, curve["seconds"], strict=True)
        ]
    return panels


def digest(plot: Content) -> str:
    """Of the plot's content."""
    return hashlib.sha256(json.dumps(plot, sort_keys=True).encode()).hexdigest()


def draw(plot: Content, png: Path) -> None:
    """Draw the plot, with the digest of what it shows."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(plot), len(TITLES), figsize=(16, 3.6 * len(plot)), squeeze=False, layout="constrained"
    )
    for row, (machine, panels) in zip(axes, plot.items(), strict=True):
        row[0].set_ylabel(machine, fontsize=10)
        for axis, title in zip(row, TITLES.values(), strict=True):
            if title in panels:
                _draw_panel(axis, title, panels[title])
            else:
                axis.axis("off")
    figure.savefig(png, dpi=80, metadata={DIGEST: digest(plot), "Software": None})
    pyplot.close(figure)


def _draw_panel(axis: "Axes", title: str, values: Any) -> None:
    axis.set_title(title, fontsize=10)
    if title == TITLES["curve"]:
        _draw_curve(axis, values)
    elif title == TITLES["latency"]:
        _draw_latencies(axis, values)
    else:
        _draw_bars(axis, values)


def _draw_bars(axis: "Axes", values: Mapping[str, float]) -> None:
    """A bar per value, labelled with the value and its ratio to the first one, which is the engine's."""
    bars = axis.bar(list(values), list(values.values()), color=[OURS, *[OTHERS] * (len(values) - 1)])
    ours = next(iter(values.values()))
    axis.bar_label(bars, [_label(value, ours) for value in values.values()], fontsize=8)
    axis.margins(y=0.2)
    axis.tick_params(axis="x", labelsize=8)


def _label(value: float, ours: float) -> str:
    return f"{value:,.0f}\n({value / ours:.2f})" if value >= 100 else f"{value:.3f}\n({value / ours:.2f})"


def _draw_latencies(axis: "Axes", values: Mapping[str, Mapping[str, float]]) -> None:
    """Median and 95th percentile of latency at the same load."""
    names = list(next(iter(values.values())))
    for offset, (percentile, by_way) in zip((-0.2, 0.2), values.items(), strict=True):
        positions = [position + offset for position in range(len(names))]
        axis.bar(positions, list(by_way.values()), 0.4, label=percentile, color=SHADES[percentile])
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.legend()


def _draw_curve(axis: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Seconds per row against rows per tick."""
    rows, seconds = zip(*points, strict=True)
    axis.plot(rows, seconds, marker="o", color=OURS)
    axis.set(
        xlabel="rows per tick", xscale="log", xticks=rows, xticklabels=[f"{count:.0f}" for count in rows]
    )
    axis.set_ylim(bottom=0)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
