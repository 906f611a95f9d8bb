"""A plan executed on one sample, plainly: for those who borrow the tables without the engine, and for tests."""

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from safelight.pipeline.diffusion.solvers.table import Four, Plan, Tick
from safelight.pipeline.errors import InvalidParams


class VectorLike(Protocol):
    """Whatever can be added and multiplied by a number: a tensor, an array, a float."""

    def __add__(self, other: Self, /) -> Self: ...

    def __rmul__(self, other: float, /) -> Self: ...


X = TypeVar("X", bound=VectorLike)


def execute_plan(
    plan: Plan, network: Callable[[X, Tick], X], x: X, noise: Callable[[int], X] | None = None
) -> X:
    """From the start `x` to the last x, of the same shape and dtype.

    `x` is `plan.start_scale` z with z standard normal (or, for a grid that starts later, data noised to its first time).
    `network(x, tick)` is the raw prediction: a trained network is asked at `tick.timestep`, a formula at `tick.t`. `noise(k)`
    is z of tick k. Raises `InvalidParams` if a stochastic plan is given no noise.
    """
    y, ring = 0.0 * x, [0.0 * x] * 3
    for k, tick in enumerate(plan.ticks):
        m = [tick.p * x + tick.q * network(x, tick), *ring]
        x_next = _sum(tick.a, x, tick.s, y, tick.b, m)
        y = _sum(tick.d, x, tick.e, y, tick.f, m)
        if tick.c:
            if noise is None:
                raise InvalidParams("noise", f"{plan.solver} adds noise: give it some")
            x_next = x_next + tick.c * noise(k)
        x = x_next
        if tick.push:
            ring = m[:3]
    return x


def _sum(of_x: float, x: X, of_y: float, y: X, of_m: Four, m: list[X]) -> X:
    total = of_x * x
    for weight, value in ((of_y, y), *zip(of_m, m, strict=True)):
        if weight:
            total = total + weight * value
    return total
