"""Executes a plan on one sample without the engine."""

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from safelight.pipeline.diffusion.solvers.table import RING, Plan, Tick, Weights
from safelight.pipeline.errors import InvalidParams


class VectorLike(Protocol):
    """Any value that can be added and multiplied by a number: a tensor, an array, a float."""

    def __add__(self, other: Self, /) -> Self: ...

    def __rmul__(self, other: float, /) -> Self: ...


X = TypeVar("X", bound=VectorLike)


def execute_plan(
    plan: Plan, network: Callable[[X, Tick], X], x: X, noise: Callable[[int], X] | None = None
) -> X:
    """The final x after all ticks, of the shape and dtype of `x`.

    The start `x` is `plan.start_scale` z with z standard normal, or, for a grid that starts below t = 1, data
    noised to its first time. `network(x, tick)` is the raw prediction: a trained network takes
    `tick.timestep`, a formula takes `tick.t`. `noise(k)` is z of tick k. Raises `InvalidParams` if a
    stochastic plan gets no noise.
    """
    y, ring = 0.0 * x, [0.0 * x] * RING
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
            ring = m[:RING]
    return x


def _sum(a: float, x: X, s: float, y: X, b: Weights, m: list[X]) -> X:
    """a x + s y + sum_j b_j m_j, without the terms whose weight is 0."""
    total = a * x
    for weight, value in ((s, y), *zip(b, m, strict=True)):
        if weight:
            total = total + weight * value
    return total
