"""Prediction types: how a network's output gives the data, as x0 = p x + q out. Float64 scalars on the host.

x = alpha x0 + sigma eps. v is alpha eps - sigma x0; the flow velocity eps - x0 is never called v.
"""

from __future__ import annotations

from collections.abc import Callable

from safelight.pipeline.errors import InvalidParams

PREDICTIONS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "epsilon": lambda alpha, sigma: (1.0 / alpha, -sigma / alpha),
    "sample": lambda alpha, sigma: (0.0, 1.0),
    # Salimans and Ho 2022, arXiv:2202.00512, appendix D
    "v_prediction": lambda alpha, sigma: (alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)),
    "flow": lambda alpha, sigma: (1.0 / (alpha + sigma), -sigma / (alpha + sigma)),
    # Tweedie's formula: score = -eps / sigma
    "score": lambda alpha, sigma: (1.0 / alpha, sigma**2 / alpha),
}


def x0_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) such that x0 = p x + q out.

    Raises `InvalidParams` for an unknown prediction type, and for `epsilon` and `score` at alpha = 0, where
    the output says nothing about the data.
    """
    if prediction not in PREDICTIONS:
        raise InvalidParams(
            "prediction", f"prediction {prediction!r} is unknown; allowed: {', '.join(PREDICTIONS)}"
        )
    if alpha == 0.0 and prediction in ("epsilon", "score"):
        raise InvalidParams(
            "prediction",
            f"{prediction} cannot be read where no signal is left (alpha = 0); "
            "start from a schedule that keeps some",
        )
    return PREDICTIONS[prediction](alpha, sigma)


def out_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(u, w) such that out = u x + w x0: the inverse of `x0_coefficients`.

    Raises `InvalidParams` where `x0_coefficients` does, and at sigma = 0, where x is x0 and says nothing
    about the noise (`sample` excepted).
    """
    p, q = x0_coefficients(prediction, alpha, sigma)
    if q == 0.0:
        raise InvalidParams(
            "prediction", f"{prediction} cannot be computed where no noise is left (sigma = 0)"
        )
    return -p / q, 1.0 / q


def convert(target: str, source: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(u, w) such that u x + w out turns an output of type `source` into one of type `target`.

    Raises `InvalidParams` where `out_coefficients` of `target` or `x0_coefficients` of `source` does.
    """
    u, w = out_coefficients(target, alpha, sigma)
    p, q = x0_coefficients(source, alpha, sigma)
    return u + w * p, w * q
