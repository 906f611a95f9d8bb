"""Training objectives, one function each. Shapes: B rows; x0, eps, out (B, C, H, W); t (B,) from 1 (noise) to 0 (data)."""

import torch
from torch import Tensor


def logit_normal_times(num: int, generator: torch.Generator, mean: float = 0.0) -> Tensor:
    """Times in (0, 1) whose logit is normal, of unit variance: mid-noise is where the work is (SD3, arXiv:2403.03206).

    Stratified, one time in each of `num` equally likely intervals, so that a small batch sees all of them; in no order.
    """
    quantiles = (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num
    return torch.sigmoid(mean + torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6)))


def flow_sample(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """The point at time t on the straight path from data to noise: (1 - t) x0 + t eps."""
    t = t[:, None, None, None]
    return (1.0 - t) * x0 + t * eps


def flow_matching_loss(out: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """Conditional flow matching (Lipman et al. 2022, arXiv:2210.02747): mean squared error to the velocity eps - x0."""
    return (out.float() - (eps - x0)).square().mean()
