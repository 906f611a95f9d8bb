"""The reference solution of the probability-flow ODE: an embedded Runge-Kutta pair with tolerances.

Not served. The number of evaluations depends on the image, so a batch would wait for its slowest sample, and
the cost of a request would not be known beforehand.
"""

import math
from collections.abc import Callable

from torch import Tensor

from safelight.pipeline.diffusion.schedules import Schedule, noise_fraction
from safelight.pipeline.errors import InvalidParams

# Dormand and Prince 1980: nodes, stages, and the difference between the fifth- and the fourth-order weights
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

Slope = Callable[[Tensor, float], Tensor]


def rk45(
    denoise: Callable[[Tensor, float], Tensor],
    schedule: Schedule,
    t: float,
    t_end: float,
    x: Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-8,
) -> tuple[Tensor, int]:
    """x (any shape, float64) at `t_end` by the probability-flow ODE, and the number of evaluations.

    Integrated in y = x / (alpha + sigma) over tau = sigma / (alpha + sigma), where the paths of every
    schedule are straight: dy / dtau = eps - x0 = (y - x0) / tau.

    Args:
        denoise: predicts x0 from (x, t).
        schedule: the noise schedule.
        t: the time of `x`.
        t_end: the time of the result.
        x: the start.
        rtol: relative tolerance of the error of a step.
        atol: absolute tolerance of the error of a step.

    Raises:
        InvalidParams: unless 1 >= t > t_end > 0 and both tolerances are positive.
    """
    if not 1.0 >= t > t_end > 0.0:
        raise InvalidParams("grid", f"1 >= t > t_end > 0 is needed, got {t} and {t_end}")
    if not (rtol > 0.0 and atol > 0.0):
        raise InvalidParams("rtol", f"tolerances must be positive, got {rtol} and {atol}")
    evaluations = 0
    tau_start, tau_end = noise_fraction(schedule, t), noise_fraction(schedule, t_end)

    def slope(y: Tensor, tau: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        time = t if tau == tau_start else schedule.time_of(math.log((1.0 - tau) / tau))
        return (y - denoise(y * sum(schedule.alpha_sigma(time)), time)) / tau

    y = _integrate(slope, x / sum(schedule.alpha_sigma(t)), tau_start, tau_end, rtol, atol)
    return y * sum(schedule.alpha_sigma(t_end)), evaluations


def _integrate(slope: Slope, y: Tensor, tau: float, tau_end: float, rtol: float, atol: float) -> Tensor:
    """y at `tau_end` < tau, by steps whose estimated error stays within the tolerances."""
    h = (tau_end - tau) / 50
    k0 = slope(y, tau)
    while tau > tau_end:
        h = max(h, tau_end - tau)
        y_next, k = _step(slope, y, tau, h, k0)
        scale = atol + rtol * y_next.abs().maximum(y.abs())
        error = float(
            ((h * sum((e * v for e, v in zip(E, k, strict=True)), 0.0 * y)) / scale).square().mean().sqrt()
        )
        if error <= 1.0:
            is_last = h == tau_end - tau
            tau, y, k0 = tau_end if is_last else tau + h, y_next, k[-1]
        h *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    return y


def _step(slope: Slope, y: Tensor, tau: float, h: float, k0: Tensor) -> tuple[Tensor, list[Tensor]]:
    """y after a step h, and the slopes of all stages; `k0` is the slope at (y, tau)."""
    k = [k0]
    for c, row in zip(C[1:], A[1:], strict=True):
        k.append(slope(y + h * sum((a * v for a, v in zip(row, k, strict=True)), 0.0 * y), tau + c * h))
    return y + h * sum((a * v for a, v in zip(A[6], k, strict=False)), 0.0 * y), k
