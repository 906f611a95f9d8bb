"""What a network's output means, as x0 = p x + q out. Scalars on the host, float64.

x = alpha x0 + sigma eps. The flow velocity is eps - x0 and never called v; v is alpha eps - sigma x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from safelight.pipeline.errors import InvalidParams

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value", "float", "Tensor")

PREDICTIONS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "epsilon": lambda alpha, sigma: (1.0 / alpha, -sigma / alpha),
    "sample": lambda alpha, sigma: (0.0, 1.0),
    "v_prediction": lambda alpha, sigma: (
        alpha / (alpha**2 + sigma**2),
        -sigma / (alpha**2 + sigma**2),
    ),  # arXiv:2202.00512, appendix D
    "flow": lambda alpha, sigma: (1.0 / (alpha + sigma), -sigma / (alpha + sigma)),
    "score": lambda alpha, sigma: (1.0 / alpha, sigma**2 / alpha),  # Tweedie: score = -eps / sigma
}


def x0_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) such that x0 = p x + q out.

    Raises `InvalidParams` for an unknown prediction type, and where the output says nothing of the data: noise and score
    at alpha = 0.
    """
    if prediction not in PREDICTIONS:
        raise InvalidParams(
            "prediction", f"prediction {prediction!r} is unknown; allowed: {', '.join(PREDICTIONS)}"
        )
    if alpha == 0.0 and prediction in ("epsilon", "score"):
        raise InvalidParams(
            "prediction",
            f"{prediction} cannot be read where no signal is left (alpha = 0); start from a schedule that keeps some",
        )
    return PREDICTIONS[prediction](alpha, sigma)


def out_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(u, w) such that out = u x + w x0: the inverse of `x0_coefficients`.

    Raises `InvalidParams` as that does, and at sigma = 0, where x is x0 and says nothing of the noise (`sample` excepted).
    """
    p, q = x0_coefficients(prediction, alpha, sigma)
    if q == 0.0:
        raise InvalidParams(
            "prediction", f"{prediction} cannot be computed where no noise is left (sigma = 0)"
        )
    return -p / q, 1.0 / q


def convert(wanted: str, given: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(u, w) such that what a network that predicts `wanted` would say is u x + w out, with `out` as `given` says it.

    Raises `InvalidParams` where either cannot be read.
    """
    u, w = out_coefficients(wanted, alpha, sigma)
    p, q = x0_coefficients(given, alpha, sigma)
    return u + w * p, w * q


def learned_log_variance(fraction: Value, beta: float, posterior: float) -> Value:
    """The log variance that ADM's second half of channels means: log beta where `fraction` is 1, log posterior where it is 0.

    Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 15; the network says 2 `fraction` - 1. Elementwise, of any shape, so no
    table can hold it: the engine drops that half, and `safelight.pipeline.diffusion.reference` samples with it offline. Raises `InvalidParams`
    unless both variances are positive.
    """
    if not (beta > 0 and posterior > 0):
        raise InvalidParams("prediction", f"variances must be positive, got {beta} and {posterior}")
    return fraction * math.log(beta) + (1.0 - fraction) * math.log(posterior)
