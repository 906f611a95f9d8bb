"""What an image will take of an engine, before its texts are encoded; from any thread."""

from collections.abc import Callable
from functools import lru_cache

from safelight.models.networks.interface import NetworkConfig
from safelight.pipeline.diffusion.guidance import guides
from safelight.pipeline.diffusion.solvers import Plan
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import GenerationParams

SMOOTHING = 0.1  # weight of the latest image in the mean share of the texts
PLANS_KEPT = 256

PlanKey = tuple[str, float, str, int, int]


class WorkEstimator:
    """Counts the ticks and operations of images; that of their texts, it learns from others.

    Args:
        make_plan: Plans an image; may raise `InvalidParams`.
        config: Of the network.
        latent_scale: Pixels on a side of one latent pixel.
    """

    def __init__(
        self, make_plan: Callable[[GenerationParams], Plan], config: NetworkConfig, latent_scale: int
    ):
        self._make_plan = make_plan
        self._config = config
        self._latent_scale = latent_scale
        self._times: dict[PlanKey, tuple[float, ...]] = {}
        self._row_flops = lru_cache(PLANS_KEPT)(self._count_row)
        self._text_factor = 1.0  # work with texts over work without

    def estimate(self, params: GenerationParams) -> tuple[int, float]:
        """The number of ticks of an image, and the operations of all. Raises `InvalidParams`."""
        ticks, flops = self._count(params)
        return ticks, self._text_factor * flops

    def observe(self, params: GenerationParams, work: float) -> None:
        """Learn from the operations that an image will really take."""
        _, flops = self._count(params)
        self._text_factor += SMOOTHING * (work / flops - self._text_factor)

    def _count(self, params: GenerationParams) -> tuple[int, float]:
        """Ticks and operations, as if there was no text."""
        times = self._times_of(params)
        rows = sum(
            sum(guide.rows)
            for guide in guides(
                times, params.guidance_scale, params.guidance_interval, params.guidance_stride
            )
        )
        return len(times), float(rows * self._row_flops(params.width, params.height))

    def _times_of(self, params: GenerationParams) -> tuple[float, ...]:
        """The time of each tick."""
        key = params.solver, params.eta, params.timestep_spacing, params.num_steps, params.steps_taken
        if (times := self._times.get(key)) is None:
            times = tuple(tick.t for tick in self._make_plan(params).ticks)
            if len(self._times) >= PLANS_KEPT:
                self._times.clear()
            self._times[key] = times
        return times

    def _count_row(self, width: int, height: int) -> int:
        return forward_flops(self._config, height // self._latent_scale, width // self._latent_scale, 0)
