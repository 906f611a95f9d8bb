"""Plots the figures of one `safelight bench` run.

    safelight bench --json > bench.json
    python docs/bench_plot.py bench.json     writes docs/bench.png

Needs the extra `docs`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

HERE = Path(__file__).resolve().parent
NAMES = {
    "ours": "this engine",
    "serial_eager": "diffusers,\none at\na time",
    "serial_compiled": "one at\na time,\ncompiled",
    "static_best": "diffusers,\nstatic\nbatches",
}
BATCH1 = {
    "ours_s": "this engine",
    "diffusers_eager_s": "diffusers",
    "diffusers_compiled_s": "diffusers,\ncompiled",
}
OURS, OTHERS = "#1b6ca8", "#b0b0b0"


def main(path: str) -> None:
    report = json.loads(Path(path).read_text())
    figure, (curve_panel, alone_panel, rate_panel, latency_panel) = pyplot.subplots(1, 4, figsize=(16, 4))
    draw_curve(curve_panel, report["curve"])
    batch1 = {label: report["batch1"][name] for name, label in BATCH1.items() if report["batch1"][name]}
    draw_bars(alone_panel, batch1, "latency of one image alone, s")
    mixed = {label: report["mixed"][name] for name, label in NAMES.items() if report["mixed"][name]}
    rates = {name: result["images_per_hour"] for name, result in mixed.items()}
    draw_bars(rate_panel, rates, "throughput of mixed requests, images/h")
    draw_latencies(latency_panel, mixed)
    figure.suptitle(f"{report['model']}, {report['device']}, {report['dtype']}, {report['threads']} threads")
    figure.tight_layout()
    figure.savefig(HERE / "bench.png", dpi=90)


def draw_curve(panel: Axes, curve: dict[str, Any]) -> None:
    """Milliseconds per row against rows per tick."""
    rows = [work / curve["work"][0] for work in curve["work"]]
    panel.plot(
        rows,
        [1e3 * seconds / count for seconds, count in zip(curve["seconds"], rows, strict=True)],
        marker="o",
        color=OURS,
    )
    panel.set(
        xlabel="rows per tick",
        ylabel="ms per row",
        xscale="log",
        xticks=rows,
        xticklabels=[f"{count:.0f}" for count in rows],
    )
    panel.set_ylim(bottom=0)
    panel.minorticks_off()
    panel.grid(alpha=0.3)


def draw_bars(panel: Axes, values: dict[str, float], title: str) -> None:
    """A bar per value, labelled with its ratio to the first value, which is the engine's."""
    bars = panel.bar(list(values), list(values.values()), color=[OURS, *[OTHERS] * (len(values) - 1)])
    ours = next(iter(values.values()))
    panel.bar_label(bars, [f"{value / ours:.2f}" for value in values.values()])
    panel.margins(y=0.12)
    panel.set_title(title, fontsize=10)
    panel.tick_params(axis="x", labelsize=8)


def draw_latencies(panel: Axes, mixed: dict[str, dict[str, float]]) -> None:
    """Median and 95th percentile of latency at the same load."""
    positions = range(len(mixed))
    for offset, name, shade in ((-0.2, "p50_s", "#7fb2d6"), (0.2, "p95_s", "#1b6ca8")):
        panel.bar(
            [position + offset for position in positions],
            [result[name] for result in mixed.values()],
            0.4,
            label=name[:3],
            color=shade,
        )
    panel.set_xticks(list(positions), list(mixed), fontsize=8)
    panel.set_title("latency under this load, s", fontsize=10)
    panel.legend()


if __name__ == "__main__":
    main(sys.argv[1])
