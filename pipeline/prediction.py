"""What a network's output means, as x0 = p x + q out. Scalars on the host, float64."""

from collections.abc import Callable

PREDICTIONS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "epsilon": lambda alpha, sigma: (1.0 / alpha, -sigma / alpha),  # x = alpha x0 + sigma eps
    "sample": lambda alpha, sigma: (0.0, 1.0),
    "v_prediction": lambda alpha, sigma: (alpha, -sigma),  # v = alpha eps - sigma x0 (arXiv:2202.00512)
    "flow": lambda alpha, sigma: (1.0, -sigma),  # out = eps - x0 where alpha + sigma = 1
}


def x0_coefficients(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """(p, q) such that x0 = p x + q out; raise `ValueError` for an unknown prediction type."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction {prediction!r} is unknown; allowed: {', '.join(PREDICTIONS)}")
    return PREDICTIONS[prediction](alpha, sigma)
