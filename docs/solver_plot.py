"""Draws docs/solvers.png from the measurements behind docs/solvers.md."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from docs.solver_tables import DATA, DETERMINISTIC, HERE, Curve, Measurements, Points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

FIGURE = HERE / "solvers.png"
DIGEST_KEY = "Source-SHA256"  # a text chunk of the image: the digest of the data that it shows

LineStyle = Literal["-", "--", ":"]
# Okabe and Ito's colours, distinct for colour-blind readers; within a colour, line and marker differ.
STYLES: dict[str, tuple[str, LineStyle, str]] = {
    "euler": ("#000000", "-", "o"),
    "heun": ("#000000", "--", "s"),
    "dpmpp_2m": ("#D55E00", "-", "o"),
    "dpmpp_3m": ("#D55E00", "--", "s"),
    "dpmpp_3m_order3": ("#D55E00", ":", "^"),
    "unipc_2": ("#0072B2", "-", "o"),
    "unipc_3": ("#0072B2", "--", "s"),
    "dpmpp_2s": ("#009E73", "-", "o"),
    "dpm_2s": ("#009E73", "--", "s"),
    "dpm_3s": ("#009E73", ":", "^"),
    "ipndm": ("#CC79A7", "-", "o"),
    "plms": ("#CC79A7", "--", "s"),
    "ddpm": ("#E69F00", "-", "D"),
    "ddpm_fixed_large": ("#E69F00", "--", "v"),
    "sde_dpmpp_2m": ("#56B4E9", "-", "D"),
    "euler_maruyama": ("#56B4E9", "--", "v"),
    "langevin": ("#8A8A8A", "-", "D"),
}


def digest(data: Path = DATA) -> str:
    """SHA-256 of the file of measurements."""
    return hashlib.sha256(data.read_bytes()).hexdigest()


def draw(measurements: Measurements) -> None:
    """Write docs/solvers.png; `measurements` are those of docs/data/solvers.json."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 2, figsize=(11, 15.5), layout="constrained")
    panels = list(axes.flat)
    for axis, (title, by_solver) in zip(panels, measurements.path_errors.items(), strict=False):
        _draw_path_errors(axis, title, by_solver)
    _draw_distribution_errors(panels[6], measurements)
    _draw_legend(panels[7])
    figure.savefig(FIGURE, dpi=110, metadata={DIGEST_KEY: digest()})


def _draw_path_errors(axis: "Axes", title: str, curves: "Mapping[str, Curve]") -> None:
    for solver in DETERMINISTIC:
        _draw_line(axis, solver, sorted(set(curves[solver].values())))
    _label(axis, title, (5, 8, 10, 15, 20, 30, 40, 60), "relative RMS path error")
    axis.set(xlim=(4.6, 66), ylim=(3e-4, 2.0))


def _draw_distribution_errors(axis: "Axes", measurements: Measurements) -> None:
    floor = measurements.exact_distance
    for solver, points in measurements.distribution_errors.items():
        _draw_line(axis, solver, points)
    axis.axhline(floor, color="#8A8A8A", linewidth=1, linestyle=(0, (1, 2)))
    axis.annotate(
        "exact samples", (5, floor), xytext=(0, 3), textcoords="offset points", fontsize=9, color="#555555"
    )
    title = "distribution, no guidance: VP trailing (langevin: VE)"
    _label(axis, title, (5, 10, 20, 50, 100, 200, 1000), "W1 / standard deviation")


def _draw_line(axis: "Axes", solver: str, points: Points) -> None:
    colour, style, marker = STYLES[solver]
    x, y = zip(*points, strict=True)
    axis.plot(x, y, color=colour, linestyle=style, marker=marker, markersize=4.5, linewidth=1.5)


def _label(axis: "Axes", title: str, ticks: tuple[int, ...], ylabel: str) -> None:
    """Title, scales, ticks and grid of a panel."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    xlabel = "network evaluations (NFE)"
    axis.set(xscale="log", yscale="log", title=title, xlabel=xlabel, ylabel=ylabel, xticks=ticks)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, which="major", color="#CCCCCC", linewidth=0.7)
    axis.grid(True, which="minor", axis="y", color="#EEEEEE", linewidth=0.4)
    axis.set_axisbelow(True)


def _draw_legend(axis: "Axes") -> None:
    from matplotlib.lines import Line2D

    axis.axis("off")
    handles = [
        Line2D([], [], color=colour, linestyle=style, marker=marker, markersize=5, linewidth=1.5, label=name)
        for name, (colour, style, marker) in STYLES.items()
    ]
    axis.legend(
        handles=handles, loc="center", ncols=2, fontsize=11, frameon=False, handlelength=3.2, labelspacing=0.9
    )
