"""The reference: one sample in a plain loop, in float64, with each solver's update written from its paper.

It is the specification that the engine is tested against. It shares the schedules and grids with the engine
and nothing else: no plan, no batch, no cached text.
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
    estimates: list[Tensor] | None = None,
) -> Tensor:
    """The data (C, H, W), float64, that `solver` generates from the start x (C, H, W).

    Args:
        cond: the network with the prompt.
        uncond: the network with the negative prompt.
        guidance_scale: as in `GenerationParams`, as are the other arguments that are not listed.
        prediction: the network's prediction type.
        schedule: the noise schedule that the network was trained on.
        solver: a key of `UPDATES`, or "ddim".
        num_steps: solver steps.
        x: the start, from noise of the scale at t = 1.
        noise: gives z (C, H, W) of evaluation k.
        spacing: the rule that places the steps, a key of `SPACINGS`.
        estimates: gets the data (C, H, W) that each evaluation predicts.

    Raises:
        InvalidParams: the solver, the prediction or the spacing is unknown.
    """
    if solver not in UPDATES and solver != "ddim":
        raise InvalidParams(
            "solver", f"solver {solver!r} is unknown; allowed: {', '.join((*UPDATES, 'ddim'))}"
        )
    guided = _Guided(cond, uncond, guidance_scale, guidance_interval, guidance_stride, guidance_rescale)

    def denoise(x: Tensor, t: float) -> Tensor:
        out = guided(x, t, schedule.timestep(t))
        x0 = x0_from(prediction, out, x, *schedule.alpha_sigma(t))
        if estimates is not None:
            estimates.append(x0)
        return x0

    problem = Problem(denoise, schedule, make_grid(schedule, num_steps, spacing), lambda k: noise(k).double())
    if solver == "ddim":
        return onestep.ddim(problem, x.double(), eta)
    return UPDATES[solver](problem, x.double())


class _Guided:
    """A network under guidance: each call is one evaluation, float64."""

    def __init__(
        self,
        cond: Network,
        uncond: Network,
        scale: float,
        interval: tuple[float, float],
        stride: int,
        rescale: float,
    ):
        self.cond, self.uncond, self.scale = cond, uncond, scale
        self.interval, self.stride, self.rescale = interval, stride, rescale
        self.differences: list[Tensor] = []  # cond - uncond of every evaluation under guidance

    def __call__(self, x: Tensor, t: float, timestep: float) -> Tensor:
        low, high = self.interval
        prompted = self.cond(x, timestep).double()
        if self.scale == 1.0 or not low <= t <= high:
            return prompted
        if self.scale != 0.0 and len(self.differences) % self.stride:
            unguided = prompted - self.differences[-1]
        else:
            unguided = self.uncond(x, timestep).double()
        self.differences.append(prompted - unguided)
        out = unguided + self.scale * (prompted - unguided)
        if self.rescale > 0.0 and self.scale != 0.0:  # Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16
            rescaled = out * (prompted.std() / out.std())
            out = self.rescale * rescaled + (1.0 - self.rescale) * out
        return out


def x0_from(prediction: str, out: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The data (C, H, W) that a raw prediction of the network stands for.

    Args:
        prediction: what the network predicts, one of `prediction.PREDICTIONS`.
        out: the raw prediction (C, H, W).
        x: the noisy data (C, H, W) that it was evaluated at.
        alpha: scale of the data in x.
        sigma: scale of the noise in x.
    """
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
