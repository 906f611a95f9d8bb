"""Training objectives, one function each.

Shapes: B samples; x0, eps, out (B, C, H, W); t (B,) from 1 (noise) to 0 (data).
"""

import torch
from torch import Tensor

from safelight.pipeline.diffusion.schedules import Schedule


def logit_normal_times(num: int, generator: torch.Generator, mean: float = 0.0) -> Tensor:
    """Draw times (num,) in (0, 1) whose logit is normal with unit variance (SD3, arXiv:2403.03206).

    With mean 0 most times fall at middle noise levels, where the network has most to learn.
    They are stratified, one in each of `num` equally likely intervals, so that a small batch covers all of
    them, and shuffled.
    """
    quantiles = (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num
    return torch.sigmoid(mean + torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6)))


def flow_sample(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The point at time t on the straight path from data to noise: (1 - t) x0 + t eps."""
    t = t[:, None, None, None]
    return (1.0 - t) * x0 + t * eps


def add_noise(x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """alpha(t) x0 + sigma(t) eps, on any schedule."""
    alpha, sigma = _alpha_sigma(t, schedule)
    return alpha * x0 + sigma * eps


def simple_loss(out: Tensor, eps: Tensor) -> Tensor:
    """DDPM's (Ho et al. 2020, arXiv:2006.11239, eq. 14): mean squared error to the noise."""
    return (out.float() - eps).square().mean()


def v_loss(out: Tensor, x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Mean squared error to v = alpha eps - sigma x0 (Salimans and Ho 2022, arXiv:2202.00512, section 4).

    Args:
        out: the network's output (B, C, H, W).
        x0: clean samples (B, C, H, W).
        eps: the noise in them (B, C, H, W).
        t: times (B,).
        schedule: gives alpha and sigma at a time.
    """
    alpha, sigma = _alpha_sigma(t, schedule)
    return (out.float() - (alpha * eps - sigma * x0)).square().mean()


def flow_matching_loss(out: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error to the velocity eps - x0 (flow matching, Lipman et al. 2022, arXiv:2210.02747)."""
    return (out.float() - (eps - x0)).square().mean()


def _alpha_sigma(t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """alpha and sigma of times (B,), each (B, 1, 1, 1) in float32."""
    pairs = torch.tensor([schedule.alpha_sigma(float(u)) for u in t], dtype=torch.float32)  # (B, 2)
    alpha, sigma = pairs.T[:, :, None, None, None]
    return alpha, sigma
