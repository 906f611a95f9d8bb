"""Whole trajectories equal diffusers' schedulers, on a deterministic network, to 1e-4 of the scale.

diffusers computes in float32 and gives the network times rounded or truncated to integers; in these tests
both networks get the exact time. Where a grid of diffusers is no spacing of ours, `make_plan` gets it as it
is, and the test says how it differs.
"""

import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.diffusion.spacing import make_grid
from tests.pipeline.oracle import execute

pytestmark = [
    # diffusers deprecates some of the schedulers, and passes a tensor to numpy
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SCALED = VariancePreserving("scaled_linear")
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STEPS = pytest.mark.parametrize("num_steps", [5, 10, 20, 50])
SHAPE = (1, 4, 4, 4)
START = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(x: Tensor, t: float) -> Tensor:
    """A deterministic function of x and t on which no solver is exact."""
    return x * t / (t + 1.0) + 0.3 * torch.sin(3.0 * x) + 0.1 * torch.cos(5.0 * t + x)


class Noise:
    """The same noise for both sides, from two equal generators."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.theirs = torch.Generator().manual_seed(1)
        self.generator = torch.Generator().manual_seed(1)
        self.dtype = dtype

    def ours(self, k: int) -> Tensor:
        return torch.randn(SHAPE, dtype=self.dtype, generator=self.generator).double()


def run(scheduler: Any, times: list[float], x: Tensor = START, **options: Any) -> Tensor:
    """diffusers' loop, with `times[i]` given to the network in evaluation i."""
    assert len(times) == len(scheduler.timesteps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for t, exact in zip(scheduler.timesteps, times, strict=True):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, exact), t, x, **options).prev_sample
    return x


def times_of(plan: Plan) -> list[float]:
    return [tick.t for tick in plan.ticks]


def check(ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    assert 0.1 < scale < 100.0  # neither vanished nor diverged, so a difference would show
    assert float((ours - theirs).abs().max()) <= 1e-4 * scale


def make_scheduler(name: str, num_steps: int, **config: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(num_steps)
    return scheduler


@STEPS
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim(num_steps: int, eta: float, prediction: str) -> None:
    scheduler = make_scheduler(
        "DDIMScheduler",
        num_steps,
        **BETAS,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    plan, noise = make_plan("ddim", SCALED, prediction, num_steps, eta=eta), Noise()
    check(
        execute(plan, network, START, noise.ours),
        run(scheduler, times_of(plan), eta=eta, generator=noise.theirs),
    )


@STEPS
def test_ddpm(num_steps: int) -> None:
    scheduler = make_scheduler(
        "DDPMScheduler",
        num_steps,
        **BETAS,
        clip_sample=False,
        timestep_spacing="trailing",
        variance_type="fixed_small",
    )
    plan, noise = make_plan("ddpm", SCALED, "epsilon", num_steps), Noise()
    check(execute(plan, network, START, noise.ours), run(scheduler, times_of(plan), generator=noise.theirs))


@STEPS
@pytest.mark.parametrize(
    ("solver", "variance"), [("ddpm", "fixed_small"), ("ddpm_fixed_large", "fixed_large")]
)
def test_ddpm_on_its_own_leading_grid(num_steps: int, solver: str, variance: str) -> None:
    """diffusers' `leading` without offset ends at its time 0, the only step without noise; it starts late."""
    scheduler = make_scheduler(
        "DDPMScheduler",
        num_steps,
        **BETAS,
        clip_sample=False,
        timestep_spacing="leading",
        variance_type=variance,
    )
    grid = (*((float(t) + 1) / 1000 for t in scheduler.timesteps), 0.0)
    assert grid[0] < 1.0 == make_grid(SCALED, num_steps, "leading")[0]
    plan, noise = make_plan(solver, SCALED, "epsilon", num_steps, grid=grid), Noise()
    check(execute(plan, network, START, noise.ours), run(scheduler, times_of(plan), generator=noise.theirs))


def test_diffusers_fixed_large_leaves_noise_on_other_grids() -> None:
    """On a grid that ends above its time 0 it wrongly adds sqrt(beta) z to the data; else both are equal."""
    scheduler = make_scheduler(
        "DDPMScheduler",
        10,
        **BETAS,
        clip_sample=False,
        timestep_spacing="trailing",
        variance_type="fixed_large",
    )
    plan, noise = make_plan("ddpm_fixed_large", SCALED, "epsilon", 10), Noise()
    ours, theirs = (
        execute(plan, network, START, noise.ours),
        run(scheduler, times_of(plan), generator=noise.theirs),
    )
    check(ours + SCALED.alpha_sigma(0.1)[1] * noise.ours(9), theirs)


ALPHA = SCALED.alpha_sigma(1.0)[0]


@STEPS
@pytest.mark.parametrize(
    ("name", "solver", "spacing"),
    [
        ("EulerDiscreteScheduler", "euler", "trailing"),
        ("EulerDiscreteScheduler", "euler", "karras"),
        # it has no option for Karras' steps
        ("EulerAncestralDiscreteScheduler", "euler_ancestral", "trailing"),
        ("HeunDiscreteScheduler", "heun", "trailing"),
        ("HeunDiscreteScheduler", "heun", "karras"),
    ],
)
def test_schedulers_of_sigma(num_steps: int, name: str, solver: str, spacing: str) -> None:
    """Their state is x / alpha, which is x at the end."""
    config = {"timestep_spacing": "trailing"} if spacing == "trailing" else {"use_karras_sigmas": True}
    scheduler, noise = make_scheduler(name, num_steps, **BETAS, **config), Noise()
    plan = make_plan(solver, SCALED, "epsilon", num_steps, spacing=spacing)
    options = {} if solver == "heun" else {"generator": noise.theirs}
    check(execute(plan, network, START, noise.ours), run(scheduler, times_of(plan), START / ALPHA, **options))


@STEPS
def test_pndm(num_steps: int) -> None:
    """PLMS with diffusers' extra evaluation at the start: N + 1."""
    scheduler = make_scheduler(
        "PNDMScheduler",
        num_steps,
        **BETAS,
        skip_prk_steps=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    plan = make_plan("plms", SCALED, "epsilon", num_steps)
    assert plan.nfe == num_steps + 1
    check(execute(plan, network, START), run(scheduler, times_of(plan)))


def test_the_extra_evaluation_is_plms_and_not_ipndm() -> None:
    assert make_plan("ipndm", SCALED, "epsilon", 10).nfe == 10
    ours, extra = (
        execute(make_plan(name, SCALED, "epsilon", 10), network, START) for name in ("ipndm", "plms")
    )
    assert float((ours - extra).abs().max()) > 1e-3


@STEPS
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize(
    ("solver", "order", "algorithm"),
    [("dpmpp_2m", 2, "dpmsolver++"), ("dpmpp_3m", 3, "dpmsolver++"), ("sde_dpmpp_2m", 2, "sde-dpmsolver++")],
)
def test_dpm_solver_multistep(
    num_steps: int, prediction: str, spacing: str, solver: str, order: int, algorithm: str
) -> None:
    scheduler = make_scheduler(
        "DPMSolverMultistepScheduler",
        num_steps,
        **BETAS,
        prediction_type=prediction,
        solver_order=order,
        algorithm_type=algorithm,
        timestep_spacing="trailing",
        use_karras_sigmas=spacing == "karras",
    )
    plan, noise = make_plan(solver, SCALED, prediction, num_steps, spacing=spacing), Noise(torch.float32)
    check(execute(plan, network, START, noise.ours), run(scheduler, times_of(plan), generator=noise.theirs))


def test_the_corrected_3m_is_another_method_than_the_published() -> None:
    published, corrected = (
        execute(make_plan(name, SCALED, "epsilon", 20), network, START)
        for name in ("dpmpp_3m", "dpmpp_3m_order3")
    )
    assert float((published - corrected).abs().max()) > 1e-3


@STEPS
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc(num_steps: int, spacing: str, order: int) -> None:
    scheduler = make_scheduler(
        "UniPCMultistepScheduler",
        num_steps,
        **BETAS,
        solver_order=order,
        solver_type="bh2",
        timestep_spacing="trailing",
        use_karras_sigmas=spacing == "karras",
        final_sigmas_type="zero",
    )
    plan = make_plan(f"unipc_{order}", SCALED, "epsilon", num_steps, spacing=spacing)
    check(execute(plan, network, START), run(scheduler, times_of(plan)))


def singlestep(order: int, evaluations: int, **config: Any) -> tuple[Any, list[float]]:
    """diffusers' single-step scheduler, whose N counts evaluations, and the times of all evaluations."""
    scheduler = make_scheduler(
        "DPMSolverSinglestepScheduler", evaluations, **BETAS, solver_order=order, **config
    )
    return scheduler, [(float(t) + 1) / 1000 for t in scheduler.timesteps]


@STEPS
def test_dpm_solver_singlestep_on_the_data(num_steps: int) -> None:
    """With an odd count: pairs, then one step to the data. An even count would end in two single steps."""
    scheduler, times = singlestep(2, 2 * num_steps - 1, lower_order_final=True)
    inner_times = (*((t,) for t in times[1::2]), ())
    plan = make_plan(
        "dpmpp_2s", SCALED, "epsilon", num_steps, grid=(*times[::2], 0.0), inner_times=inner_times
    )
    assert times_of(plan) == times
    check(execute(plan, network, START), run(scheduler, times))


@STEPS
@pytest.mark.parametrize(("solver", "order"), [("dpm_2s", 2), ("dpm_3s", 3)])
def test_dpm_solver_singlestep_on_the_noise(num_steps: int, solver: str, order: int) -> None:
    """The noise form cannot reach the data in diffusers, so it ends at the first trained time.

    DPM-Solver-3 has diffusers' `heun` second stage and its `midpoint` third stage, so the type is set before
    each.
    """
    scheduler, times = singlestep(
        order, order * num_steps, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    )
    assert scheduler.order_list == [*range(1, order + 1)] * num_steps
    inner_times = tuple(zip(*(times[i::order] for i in range(1, order)), strict=True))
    plan = make_plan(
        solver, SCALED, "epsilon", num_steps, grid=(*times[::order], 0.001), inner_times=inner_times
    )
    assert times_of(plan) == times
    x = START
    for stage, (t, exact) in enumerate(zip(scheduler.timesteps, times, strict=True)):
        scheduler.register_to_config(solver_type="heun" if order == 3 and stage % 3 == 1 else "midpoint")
        x = scheduler.step(network(x, exact), t, x).prev_sample
    check(execute(plan, network, START), x)


@STEPS
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(num_steps: int, shift: float) -> None:
    """On its own times, as in SD3's pipeline, and with the sigmas that FLUX's pipeline passes."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for spacing, sigmas in (("linspace", None), ("trailing", [1 - i / num_steps for i in range(num_steps)])):
        scheduler.set_timesteps(num_steps, sigmas=sigmas)
        plan = make_plan("euler", Flow(shift), "flow", num_steps, spacing=spacing)
        check(execute(plan, network, START), run(scheduler, times_of(plan)))


@STEPS
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(num_steps: int, shift: float) -> None:
    """On its own grid, which ends above 0, where it is shifted twice."""
    scheduler = make_scheduler("FlowMatchHeunDiscreteScheduler", num_steps, shift=shift)
    sigmas = scheduler.sigmas.tolist()
    plan = make_plan("heun", Flow(shift), "flow", num_steps, grid=(sigmas[0], *sigmas[1:-1:2], 0.0))
    check(execute(plan, network, START), run(scheduler, times_of(plan)))


@STEPS
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "solver", "config"),
    [
        ("DPMSolverMultistepScheduler", "dpmpp_2m", {"solver_order": 2}),
        ("DPMSolverMultistepScheduler", "dpmpp_3m", {"solver_order": 3}),
        ("UniPCMultistepScheduler", "unipc_2", {"solver_order": 2, "final_sigmas_type": "zero"}),
    ],
)
def test_exponential_solvers_on_flows(
    num_steps: int, shift: float, name: str, solver: str, config: dict[str, Any]
) -> None:
    """On diffusers' flow grids, which start a little below 1."""
    scheduler = make_scheduler(
        name, num_steps, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **config
    )
    sigmas = scheduler.sigmas.tolist()
    plan = make_plan(solver, Flow(shift), "flow", num_steps, grid=tuple(sigmas))
    check(execute(plan, network, START), run(scheduler, times_of(plan)))


def test_diffusers_flow_grids_start_below_1() -> None:
    """From 1 - 1e-3 the second step of 2M uses a value over a long h; from 1, as here, h is infinite."""
    scheduler = make_scheduler(
        "DPMSolverMultistepScheduler",
        10,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
        solver_order=2,
    )
    theirs = tuple(scheduler.sigmas.tolist())
    assert theirs[0] == pytest.approx(0.999)
    plan = make_plan("dpmpp_2m", Flow(), "flow", 10, grid=theirs)
    assert plan.ticks[1].b[1] != 0.0
    check(execute(plan, network, START), run(scheduler, times_of(plan)))
    assert make_plan("dpmpp_2m", Flow(), "flow", 10, grid=(1.0, *theirs[1:])).ticks[1].b[1] == 0.0


def test_diffusers_rounds_times_with_karras() -> None:
    """The network gets the nearest training step, the solver the exact sigma."""
    scheduler = make_scheduler("DPMSolverMultistepScheduler", 20, **BETAS, use_karras_sigmas=True)
    plan = make_plan("dpmpp_2m", SCALED, "epsilon", 20, spacing="karras")
    rounded = [(float(t) + 1) / 1000 for t in scheduler.timesteps]
    assert rounded == pytest.approx(times_of(plan), abs=0.5e-3 + 1e-9)
    assert rounded != pytest.approx(times_of(plan), abs=1e-4)
    ours = execute(plan, network, START)
    assert float((run(scheduler, rounded) - ours).abs().max()) > 1e-4


def cosine() -> tuple[Schedule, dict[str, object]]:
    return VariancePreserving("cosine"), {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }


@STEPS
def test_cosine_betas(num_steps: int) -> None:
    """Without the first time, where x / alpha is 2e4 times the data and our solver takes an Euler step."""
    schedule, config = cosine()
    scheduler = make_scheduler(
        "DPMSolverMultistepScheduler", num_steps, **config, timestep_spacing="trailing"
    )
    scheduler.sigmas, scheduler.timesteps = scheduler.sigmas[1:], scheduler.timesteps[1:]
    grid = make_grid(schedule, num_steps)[1:]
    plan = make_plan("dpmpp_2m", schedule, "v_prediction", num_steps - 1, grid=grid)
    check(execute(plan, network, START), run(scheduler, times_of(plan)))


def test_cosine_betas_with_karras_repeat_times() -> None:
    """diffusers' times are truncated to integers and repeat; ours are strictly decreasing."""
    schedule, config = cosine()
    scheduler = make_scheduler("DPMSolverMultistepScheduler", 50, **config, use_karras_sigmas=True)
    assert len(set(scheduler.timesteps.tolist())) < 50
    grid = make_grid(schedule, 50, "karras")
    assert all(t > u for t, u in zip(grid, grid[1:], strict=False))
