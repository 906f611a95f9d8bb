"""Error against network evaluations for every solver, on data whose exact network is known.

    python docs/solver_curves.py             writes docs/solvers.png and the tables of docs/solvers.md
    python docs/solver_curves.py --registry  writes only the table of solvers, fast and without matplotlib

The data are Gaussian mixtures, so scores are exact and only the solvers' discretisation error is measured.
Needs the extra `docs`.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from safelight.pipeline.diffusion.reference.adaptive import rk45
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import ALIASES, SOLVERS, Plan, Tick, execute_plan, make_plan
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import GAUSSIAN, MODES, Mixture, gaussian_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.progress import Progress

Denoise = Callable[[Tensor, float], Tensor]
Curve = dict[int, tuple[int, float]]  # budget of evaluations to (evaluations used, error)
Points = list[tuple[int, float]]  # (evaluations, error)

NFES = (5, 6, 8, 10, 12, 15, 20, 30, 40, 60)
TABLED = (10, 15, 20)
STOCHASTIC_NFES = (5, 10, 20, 50, 100, 200)
LANGEVIN_LEVELS = (5, 10)  # of annealed Langevin, 100 evaluations each
ORDER_STEPS = (160, 320)

NUM_MIXTURES = 4
NUM_STARTS = 64
NUM_DRAWS = 2**15
SIDE = 8
COMPONENTS = 32
NUM_PROMPTED = 4  # components that the prompt selects

DETERMINISTIC = tuple(name for name, solver in SOLVERS.items() if solver.deterministic)
STOCHASTIC = tuple(name for name, solver in SOLVERS.items() if not solver.deterministic)


@dataclass(frozen=True)
class Case:
    """One panel of the figure: a setting in which path errors of solvers are compared."""

    title: str
    schedule: Schedule
    guidance_scale: float
    spacing: str


SD = VariancePreserving("scaled_linear")
CASES = (
    Case("VP, w = 1, trailing", SD, 1.0, "trailing"),
    Case("VP, w = 7.5, trailing", SD, 7.5, "trailing"),
    Case("VP, w = 1, karras", SD, 1.0, "karras"),
    Case("VP, w = 7.5, karras", SD, 7.5, "karras"),
    Case("flow, shift 3, w = 4.5, trailing", Flow(3.0), 4.5, "trailing"),
    Case("flow, shift 1, w = 7, trailing", Flow(1.0), 7.0, "trailing"),
)


def image_like(seed: int) -> Mixture:
    """A mixture like images of 8 x 8 in the cosine basis.

    Variance falls as 1 / (1 + f^2), half of it between components and half within.
    """
    generator = torch.Generator().manual_seed(seed)
    f = torch.arange(SIDE, dtype=torch.float64)
    spectrum = 1.0 / (1.0 + (f[:, None] ** 2 + f**2).flatten())
    spectrum = spectrum / spectrum.mean()
    means = (0.5 * spectrum).sqrt() * torch.randn(
        COMPONENTS, SIDE**2, generator=generator, dtype=torch.float64
    )
    spread = (0.5 * torch.randn(COMPONENTS, 1, generator=generator, dtype=torch.float64)).exp()
    return Mixture(
        torch.full((COMPONENTS,), 1.0 / COMPONENTS, dtype=torch.float64), means, 0.5 * spectrum * spread
    )


def stack(mixtures: list[Mixture], components: int = COMPONENTS) -> Mixture:
    """The first components of several mixtures, equally likely, as one mixture of shape (M, K, D)."""
    weights, means, variances = (
        torch.stack([getattr(m, n) for m in mixtures]) for n in ("weights", "means", "variances")
    )
    weights = weights[:, :components]
    return Mixture(weights / weights.sum(1, keepdim=True), means[:, :components], variances[:, :components])


def posterior_mean(data: Mixture, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """`Mixture.x0` (..., N, D) by fast matrix products, for several mixtures (..., K, D) at once."""
    precision = 1.0 / (alpha**2 * data.variances + sigma**2)
    centre = data.means * precision
    constant = data.weights.log() - 0.5 * (alpha**2 * (data.means * centre) - precision.log()).sum(-1)
    shares = (
        (constant[..., None] + centre @ (alpha * x).mT - precision @ (0.5 * x.square()).mT).softmax(dim=-2).mT
    )
    gain = alpha * data.variances * precision
    return shares @ (data.means - alpha * gain * data.means) + x * (shares @ gain)


def guided(schedule: Schedule, guidance_scale: float) -> Denoise:
    """A perfect network for a prompt that selects a few components, guided against all; x (M, N, D)."""
    mixtures = [image_like(seed) for seed in range(NUM_MIXTURES)]
    data, prompted = stack(mixtures), stack(mixtures, NUM_PROMPTED)

    def denoise(x: Tensor, t: float) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        cond = posterior_mean(prompted, x, alpha, sigma)
        if guidance_scale == 1.0:
            return cond
        uncond = posterior_mean(data, x, alpha, sigma)
        return uncond + guidance_scale * (cond - uncond)

    return denoise


def affordable(solver: str, schedule: Schedule, spacing: str, nfe: int) -> Plan | None:
    """The plan with the most steps within `nfe` evaluations, or None."""
    # the first and last steps may take fewer evaluations than the others
    for num_steps in range(nfe // SOLVERS[solver].evaluations + 2, 0, -1):
        try:
            plan = make_plan(solver, schedule, "sample", num_steps, spacing=spacing)
        except InvalidParams:  # too few steps for this solver or spacing
            continue
        if plan.nfe <= nfe:
            return plan
    return None


class PathErrors:
    """Path errors of one case, against ends computed by adaptive Runge-Kutta on a few mixtures."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.denoise = guided(case.schedule, case.guidance_scale)
        self.start = torch.randn(
            NUM_MIXTURES,
            NUM_STARTS,
            SIDE**2,
            generator=torch.Generator().manual_seed(99),
            dtype=torch.float64,
        )
        # sigma is below 1e-3 there, so the network's prediction is the data
        t_end = 1e-4 if case.schedule.family == "flow" else 1e-7
        end, _ = rk45(self.denoise, case.schedule, 1.0, t_end, self.start, rtol=1e-6, atol=1e-8)
        self.end = self.denoise(end, t_end)

    def error(self, plan: Plan) -> float:
        """RMS distance to the exact ends over their RMS."""
        end = execute_plan(plan, lambda x, tick: self.denoise(x, tick.t), plan.start_scale * self.start)
        return float((end - self.end).norm() / self.end.norm())

    def curve(self, solver: str) -> Curve:
        """For each budget of evaluations, the number used and the error."""
        points, errors = {}, {}
        for nfe in NFES:
            plan = affordable(solver, self.case.schedule, self.case.spacing, nfe)
            if plan is None:
                continue
            if plan.nfe not in errors:
                errors[plan.nfe] = self.error(plan)
            points[nfe] = (plan.nfe, errors[plan.nfe])
        return points


def distribution_error(solver: str, schedule: Schedule, num_steps: int) -> tuple[int, float]:
    """Evaluations, and the distance of samples to the exact mixture.

    The distance is Wasserstein-1 over the mixture's standard deviation.
    """
    plan = make_plan(solver, schedule, "sample", num_steps)
    generator = torch.Generator().manual_seed(7)
    start = plan.start_scale * torch.randn(NUM_DRAWS, 1, generator=generator, dtype=torch.float64)

    def network(x: Tensor, tick: Tick) -> Tensor:
        return posterior_mean(MODES, x, *schedule.alpha_sigma(tick.t))

    def noise(k: int) -> Tensor:
        return torch.randn(start.shape, generator=generator, dtype=start.dtype)

    end = execute_plan(plan, network, start, noise)
    return plan.nfe, float((end.flatten().sort().values - _quantiles()).abs().mean()) / _deviation()


def distribution_floor() -> float:
    """The mean distance of as many exact samples, over a few draws."""
    distances = []
    for seed in range(16):
        samples = MODES.draw(NUM_DRAWS, torch.Generator().manual_seed(seed)).flatten().sort().values
        distances.append(float((samples - _quantiles()).abs().mean()))
    return sum(distances) / len(distances) / _deviation()


@cache
def _quantiles() -> Tensor:
    """The quantiles of the one-dimensional mixture at (i + 1/2) / NUM_DRAWS, by bisection."""
    levels = (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS
    low, high = torch.full_like(levels, -10.0), torch.full_like(levels, 10.0)
    for _ in range(50):
        middle = (low + high) / 2
        cdf = torch.special.ndtr((middle[:, None] - MODES.means.T) / MODES.variances.T.sqrt())
        below = (cdf * MODES.weights).sum(1) < levels
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _deviation() -> float:
    mean = (MODES.weights * MODES.means[:, 0]).sum()
    return float((MODES.weights * (MODES.variances + (MODES.means - mean) ** 2)[:, 0]).sum().sqrt())


def distribution_curves() -> Iterator[tuple[str, Points]]:
    """The stochastic solvers, and two deterministic ones for comparison, on VP; annealed Langevin on VE."""
    for solver in (*STOCHASTIC, "euler", "dpmpp_2m"):
        if "vp" in SOLVERS[solver].families:
            yield solver, [distribution_error(solver, SD, n) for n in STOCHASTIC_NFES]
        else:
            yield solver, [distribution_error(solver, VarianceExploding(), n) for n in LANGEVIN_LEVELS]


def measured_order(solver: str) -> float:
    """The slope of the error at the largest step counts, on one Gaussian, whose map has a closed form.

    On a flow with equal steps of lam, without lowered orders at the end. The path starts close to noise,
    where the first steps, which have no history and so a lower order, add almost no error.
    """
    flow, t, t_end = Flow(), 0.995, 0.05
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    first, last = (math.log((1.0 - t) / t) for t in (t, t_end))
    exact = gaussian_map(GAUSSIAN, flow, t, t_end, x)
    errors = []
    for n in ORDER_STEPS:
        grid = (t, *(flow.time_of(first + i / n * (last - first)) for i in range(1, n)), t_end)
        plan = make_plan(solver, flow, "sample", n, grid=grid, lower_order_final=False)
        end = execute_plan(plan, lambda x, tick: posterior_mean(GAUSSIAN, x, *flow.alpha_sigma(tick.t)), x)
        errors.append(float((end - exact).abs().max()))
    return math.log2(errors[-2] / errors[-1])


# -- tables
# -----------------------------------------------------------------------------------------------------------


def registry_table() -> str:
    """Every solver, one row each."""
    rows = [
        "| solver | order | evaluations a step | kind | place | schedules | source | use |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, solver in SOLVERS.items():
        kind, weak = ("deterministic", "") if solver.deterministic else ("stochastic", "weak ")
        order = "none" if solver.order is None else f"{weak}{solver.order}"
        place, families = "served" if solver.served else "offline", ", ".join(solver.families)
        cells = (f"`{name}`", order, solver.evaluations, kind, place, families, solver.source, solver.use)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    aliases = "; ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items())
    return "\n".join([*rows, "", f"Aliases, which are not counted as solvers: {aliases}."])


def error_tables(curves: list[dict[str, Curve]]) -> str:
    """A table for each budget: solvers down, cases across, the smallest error of each case in bold."""
    parts = []
    for nfe in TABLED:
        parts.append(f"At most {nfe} evaluations (in brackets: those used, if fewer):\n")
        parts.append(f"| solver | {' | '.join(case.title for case in CASES)} |\n|---|{'---|' * len(CASES)}")
        smallest = [min(curve[nfe][1] for curve in by_solver.values()) for by_solver in curves]
        for solver in DETERMINISTIC:
            cells = []
            for by_solver, best in zip(curves, smallest, strict=True):
                used, error = by_solver[solver][nfe]
                text = _three_digits(error)
                cells.append(
                    (f"**{text}**" if error == best else text) + ("" if used == nfe else f" ({used})")
                )
            parts.append(f"| `{solver}` | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts[:-1])


def distribution_table(curves: dict[str, Points], floor: float) -> str:
    rows = ["| solver | schedule | evaluations: distance |", "|---|---|---|"]
    for solver, points in curves.items():
        schedule = "vp" if "vp" in SOLVERS[solver].families else "ve"
        rows.append(
            f"| `{solver}` | {schedule} | {', '.join(f'{nfe}: {error:.4f}' for nfe, error in points)} |"
        )
    return "\n".join([*rows, "", f"As many exact samples ({NUM_DRAWS:,}) score {floor:.4f}."])


def order_table(orders: dict[str, float]) -> str:
    rows = ["| solver | order | measured |", "|---|---|---|"]
    return "\n".join(
        [*rows, *(f"| `{name}` | {SOLVERS[name].order} | {slope:.2f} |" for name, slope in orders.items())]
    )


def _three_digits(error: float) -> str:
    return "over 10" if not error < 10.0 else f"{error:.3f}" if error >= 0.01 else f"{error:.4f}"


def fill(text: str, name: str, block: str) -> str:
    """`text` with `block` between the markers of `name`."""
    pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"docs/solvers.md has no block {name!r}")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", text)


# -- plot
# ------------------------------------------------------------------------------------------------------------

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


def draw(curves: list[dict[str, Curve]], distributions: dict[str, Points], floor: float) -> None:
    """Write docs/solvers.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 2, figsize=(11, 15.5), layout="constrained")
    panels = list(axes.flat)
    for axis, case, by_solver in zip(panels, CASES, curves, strict=False):
        _draw_path_errors(axis, case, by_solver)
    _draw_distribution_errors(panels[6], distributions, floor)
    _draw_legend(panels[7])
    figure.savefig(HERE / "solvers.png", dpi=110)


def _draw_path_errors(axis: "Axes", case: Case, curves: dict[str, Curve]) -> None:
    for solver in DETERMINISTIC:
        _draw_line(axis, solver, sorted(set(curves[solver].values())))
    _label(axis, case.title, (5, 8, 10, 15, 20, 30, 40, 60), "relative RMS path error")
    axis.set(xlim=(4.6, 66), ylim=(3e-4, 2.0))


def _draw_distribution_errors(axis: "Axes", curves: dict[str, Points], floor: float) -> None:
    for solver, points in curves.items():
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


# -- command
# ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registry", action="store_true", help="only the table of solvers")
    page = HERE / "solvers.md"
    blocks = {"registry": registry_table()}
    if not parser.parse_args().registry:
        try:
            blocks |= measure()
        except KeyboardInterrupt:
            return 130
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text = fill(text, name, block)
    page.write_text(text, encoding="utf-8")
    return 0


def measure() -> dict[str, str]:
    """The measured tables by name; also draws the figure. Nothing is written before all is measured."""
    torch.set_num_threads(1)
    total = len(CASES) * (len(DETERMINISTIC) + 1) + len(STOCHASTIC) + 2 + len(DETERMINISTIC)
    with _progress_bar() as progress:
        task = progress.add_task("", total=total)

        def report(description: str) -> None:
            progress.update(task, description=description, advance=1)

        curves = [_case_curves(case, report) for case in CASES]
        distributions, orders = {}, {}
        for solver, points in distribution_curves():
            distributions[solver] = points
            report("distribution")
        for solver in DETERMINISTIC:
            orders[solver] = measured_order(solver)
            report("order of convergence")
    floor = distribution_floor()
    draw(curves, distributions, floor)
    return {
        "errors": error_tables(curves),
        "distribution": distribution_table(distributions, floor),
        "orders": order_table(orders),
    }


def _case_curves(case: Case, report: Callable[[str], None]) -> dict[str, Curve]:
    """The curve of every deterministic solver; calls `report` after each piece of work."""
    path_errors = PathErrors(case)
    report(f"{case.title}: reference")
    curves = {}
    for solver in DETERMINISTIC:
        curves[solver] = path_errors.curve(solver)
        report(case.title)
    return curves


def _progress_bar() -> "Progress":
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description:32}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
