"""One sample in a plain loop, each update written from its paper, in float64: the specification and the oracle.

It shares the schedules and the grids with the engine and nothing else: it never sees a table, a batch or a cached text.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from safelight.pipeline.diffusion.reference import multistep, onestep, singlestep
from safelight.pipeline.diffusion.reference.problem import Problem
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.spacing import make_grid
from safelight.pipeline.errors import InvalidParams

__all__ = ["UPDATES", "Network", "Problem", "generate_one", "x0_from"]

Network = Callable[[Tensor, float], Tensor]  # (x, timestep) to the raw prediction

UPDATES: dict[str, Callable[[Problem, Tensor], Tensor]] = {
    "euler": onestep.ddim,
    "heun": onestep.heun,
    "ddpm": onestep.ddpm,
    "ddpm_fixed_large": onestep.ddpm_fixed_large,
    "euler_ancestral": onestep.euler_ancestral,
    "euler_maruyama": onestep.euler_maruyama,
    "dpmpp_2m": partial(multistep.dpmpp, order=2),
    "dpmpp_3m": partial(multistep.dpmpp, order=3),
    "dpmpp_3m_order3": partial(multistep.dpmpp, order=3, published=False),
    "sde_dpmpp_2m": multistep.sde_dpmpp_2m,
    "ipndm": multistep.ipndm,
    "plms": multistep.plms,
    "unipc_2": partial(multistep.unipc, order=2),
    "unipc_3": partial(multistep.unipc, order=3),
    "dpm_2s": singlestep.dpm_2s,
    "dpm_3s": singlestep.dpm_3s,
    "dpmpp_2s": singlestep.dpmpp_2s,
    "langevin": singlestep.langevin,
}


def generate_one(
    cond: Network,
    uncond: Network,
    guidance_scale: float,
    prediction: str,
    schedule: Schedule,
    solver: str,
    num_steps: int,
    x: Tensor,
    noise: Callable[[int], Tensor],
    *,
    spacing: str = "trailing",
    eta: float = 0.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance_stride: int = 1,
    guidance_rescale: float = 0.0,
) -> Tensor:
    """From the start x (C, H, W) to data (C, H, W), float64.

    `cond` and `uncond` are the network with the prompt and the negative prompt; `noise(k)` is z of evaluation k. The options
    mean what they mean in `GenerationParams`, and solvers what their papers say (`onestep`, `multistep`, `singlestep`). Raises
    `InvalidParams` for a solver or a prediction that it does not know.
    """
    if solver not in UPDATES and solver != "ddim":
        raise InvalidParams(
            "solver", f"solver {solver!r} is unknown; allowed: {', '.join((*UPDATES, 'ddim'))}"
        )

    differences: list[Tensor] = []  # one for each evaluation under guidance

    def denoise(x: Tensor, t: float) -> Tensor:
        timestep = schedule.timestep(t)
        low, high = guidance_interval
        if guidance_scale == 1.0 or not low <= t <= high:
            out = cond(x, timestep).double()
        else:
            prompted = cond(x, timestep).double()
            if guidance_scale != 0.0 and len(differences) % guidance_stride:
                unguided = prompted - differences[-1]
            else:
                unguided = uncond(x, timestep).double()
            differences.append(prompted - unguided)
            out = unguided + guidance_scale * (prompted - unguided)
            if (
                guidance_rescale > 0.0 and guidance_scale != 0.0
            ):  # Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16
                rescaled = out * (prompted.std() / out.std())
                out = guidance_rescale * rescaled + (1.0 - guidance_rescale) * out
        return x0_from(prediction, out, x, *schedule.alpha_sigma(t))

    problem = Problem(denoise, schedule, make_grid(schedule, num_steps, spacing), lambda k: noise(k).double())
    if solver == "ddim":
        return onestep.ddim(problem, x.double(), eta)
    return UPDATES[solver](problem, x.double())


def x0_from(prediction: str, out: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The data (C, H, W) that a raw prediction means."""
    if prediction == "epsilon":
        return (x - sigma * out) / alpha
    if prediction == "v_prediction":
        return (alpha * x - sigma * out) / (alpha**2 + sigma**2)
    if prediction == "flow":
        return (x - sigma * out) / (alpha + sigma)
    if prediction == "score":
        return (x + sigma**2 * out) / alpha
    if prediction == "sample":
        return out
    raise InvalidParams("prediction", f"prediction {prediction!r} is unknown")
