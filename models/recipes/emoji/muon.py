"""The optimiser Muon: orthogonalised momentum, for matrices and for convolutions' filters."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from safelight.pipeline.assembly.device import fast_dtype


class Muon(torch.optim.Muon):
    """torch's Muon, but in float32 where the device does not multiply bfloat16 natively.

    torch's own multiplies in bfloat16 everywhere, which on such a processor took 13 of 14 parts of a step.
    The rates are adjusted as `match_rms_adamw` does (Liu et al. 2025, arXiv:2502.16982).
    """

    def __init__(self, matrices: Iterable[nn.Parameter], **options: Any):
        super().__init__(matrices, adjust_lr_fn="match_rms_adamw", **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if fast_dtype() is torch.bfloat16:
            super().step()  # type: ignore[no-untyped-call]
            return
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            for p in matrices:
                gradient, state = p.grad, self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].lerp_(gradient, 1.0 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = orthogonalise(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonalise(
    g: Tensor, coefficients: tuple[float, float, float], num_steps: int, epsilon: float
) -> Tensor:
    """The Newton-Schulz iteration X <- aX + (bA + cA²)X, A = XXᵀ, from G scaled to a norm of at most 1.

    It moves the singular values of a matrix G (m, n) towards 1
    (https://kellerjordan.github.io/posts/muon/), in the dtype of G.
    """
    a, b, c = coefficients
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / x.norm().clamp(min=epsilon)
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if g.shape[0] > g.shape[1] else x


class FilterMuon(Muon):
    """Muon for convolutions, with filters as matrices (out, kh x kw x in).

    The matrices are views of `filters`, 4-D parameters in the channels-last layout, so loading and averaging
    parameters works as usual; only gradients are copied.
    """

    def __init__(self, filters: Iterable[nn.Parameter], **options: Any):
        self._filters = list(filters)
        super().__init__([nn.Parameter(_as_matrix(p.data)) for p in self._filters], **options)

    # Without a closure: it would make new gradients after the copying.
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for p, matrix in zip(self._filters, self.param_groups[0]["params"], strict=True):
            if p.data_ptr() != matrix.data_ptr():
                raise RuntimeError("a filter was moved: its matrix is no longer a view of it")
            matrix.grad = None if p.grad is None else _as_matrix(p.grad)
        super().step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p in self._filters:
            p.grad = None


def _as_matrix(filters: Tensor) -> Tensor:
    return filters.permute(0, 2, 3, 1).flatten(1)
