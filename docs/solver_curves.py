"""Error against network evaluations for every solver, on data whose exact network is known.

    python docs/solver_curves.py           measures, writes docs/data/solvers.json, and draws docs/solvers.png
    python docs/solver_curves.py --tables  measures nothing; both write the tables of docs/solvers.md

The data are Gaussian mixtures, so scores are exact and only the solvers' discretisation error is measured.
The figure needs the extra `docs`.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.solver_plot import draw
from docs.solver_tables import (
    DETERMINISTIC,
    PAGE,
    STOCHASTIC,
    Curve,
    Measurements,
    Points,
    fill_page,
    read_data,
    write_data,
)
from safelight.pipeline.diffusion.reference.adaptive import rk45
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import SOLVERS, Plan, Tick, execute_plan, make_plan
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.oracle import GAUSSIAN, MODES, Mixture, gaussian_map

if TYPE_CHECKING:
    from rich.progress import Progress

Denoise = Callable[[Tensor, float], Tensor]

NFES = (5, 6, 8, 10, 12, 15, 20, 30, 40, 60)
STOCHASTIC_NFES = (5, 10, 20, 50, 100, 200)
LANGEVIN_LEVELS = (5, 10)  # of annealed Langevin, 100 evaluations each
ORDER_STEPS = (160, 320)

NUM_MIXTURES = 4
NUM_STARTS = 64
NUM_DRAWS = 2**15
SIDE = 8
COMPONENTS = 32
NUM_PROMPTED = 4  # components that the prompt selects


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


def distribution_points(solver: str) -> Points:
    """Distances on VP; of annealed Langevin on VE."""
    schedule, step_counts = distribution_setting(solver)
    errors = (distribution_error(solver, schedule, num_steps) for num_steps in step_counts)
    return [(nfe, _rounded(error)) for nfe, error in errors]


def distribution_setting(solver: str) -> tuple[Schedule, tuple[int, ...]]:
    """The schedule and the numbers of steps at which the distribution of a solver's samples is measured."""
    if "vp" in SOLVERS[solver].families:
        return SD, STOCHASTIC_NFES
    return VarianceExploding(), LANGEVIN_LEVELS


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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="only the page's tables, without measuring")
    if not parser.parse_args().tables:
        try:
            measurements = measure()
        except KeyboardInterrupt:
            return 130
        write_data(measurements)
        draw(measurements)
    PAGE.write_text(fill_page(PAGE.read_text(encoding="utf-8"), read_data()), encoding="utf-8")
    return 0


def measure() -> Measurements:
    """Everything behind the page."""
    torch.set_num_threads(1)
    total = len(CASES) * (len(DETERMINISTIC) + 1) + len(STOCHASTIC) + 2 + len(DETERMINISTIC)
    with _progress_bar() as progress:
        task = progress.add_task("", total=total)

        def report(description: str) -> None:
            progress.update(task, description=description, advance=1)

        path_errors = {case.title: _case_curves(case, report) for case in CASES}
        distribution_errors, orders = {}, {}
        for solver in (*STOCHASTIC, "euler", "dpmpp_2m"):
            distribution_errors[solver] = distribution_points(solver)
            report("distribution")
        for solver in DETERMINISTIC:
            orders[solver] = _rounded(measured_order(solver))
            report("order of convergence")
    return Measurements(path_errors, distribution_errors, NUM_DRAWS, _rounded(distribution_floor()), orders)


def _case_curves(case: Case, report: Callable[[str], None]) -> dict[str, Curve]:
    """The curve of every deterministic solver; calls `report` after each piece of work."""
    path_errors = PathErrors(case)
    report(f"{case.title}: reference")
    curves = {}
    for solver in DETERMINISTIC:
        curve = path_errors.curve(solver)
        curves[solver] = {budget: (used, _rounded(error)) for budget, (used, error) in curve.items()}
        report(case.title)
    return curves


def _rounded(value: float) -> float:
    """`value` with five significant digits."""
    return float(f"{value:.5g}")


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
