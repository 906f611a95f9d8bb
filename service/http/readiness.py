"""Readiness: every stage has drawn a warm-up image, and every stage answers."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from safelight.pipeline.catalog.model_info import MIN_STEPS, ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import GenerationParams
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import BrokenImage, ServiceError
from safelight.service.http.schemas import Readiness, StageReadiness
from safelight.service.messages import ImageFormat, ImageUsage

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
Observe = Callable[[Sequence[GenerationParams], Sequence[ImageUsage]], None]


class WarmUp:
    """Draws one image when the gateway starts, and reports readiness.

    Args:
        dispatcher: Draws it.
        model: The served model.
        observe: Learns what it took.
    """

    def __init__(self, dispatcher: RequestDispatcher, model: ModelInfo, observe: Observe | None = None):
        self._dispatcher = dispatcher
        self._observe = observe
        self._image = make_warm_up_image(model)
        self._is_done = False
        self._has_failed = False
        self._reason: str | None = None

    async def run(self) -> None:
        """Try until the image is drawn, or until the model turns out not to be able to draw."""
        while not (self._is_done or self._has_failed):
            try:
                results = await self._dispatcher.generate([self._image], ImageFormat())
                if self._observe is not None:
                    self._observe([self._image], [result.usage for result in results])
                self._is_done, self._reason = True, None
            except ServiceError as error:
                self._reason = str(error)
                self._has_failed = isinstance(error, BrokenImage)
                logger.warning("the warm-up image failed: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def report(self) -> Readiness:
        status = await self._dispatcher.status()
        stages = {
            name: StageReadiness(
                ready=stage is not None and (self._is_done or stage.images > 0),
                asleep=stage is not None and stage.is_asleep,
                pictures=stage.images if stage else 0,
            )
            for name, stage in status.items()
        }
        ready = self._is_done and all(stage.ready for stage in stages.values())
        return Readiness(ready=ready, stages=stages, reason=self._reason, failed=self._has_failed)


def make_warm_up_image(model: ModelInfo) -> GenerationParams:
    """The cheapest image that exercises every stage: default size and guidance, as few steps as possible."""
    width, height = model.default_size
    prompt = "0" if model.labels else "warm-up"  # a class label for class-conditional models
    image = GenerationParams(prompt, "", width, height, MIN_STEPS, model.guidance_scale, model.solver, seed=0)
    while not _can_plan(image, model):
        image = replace(image, num_steps=image.num_steps + 1)
    return image


def _can_plan(image: GenerationParams, model: ModelInfo) -> bool:
    """Whether the solver can make do with so few steps; the model's own number always suffices."""
    try:
        plan_request(image, model)
    except InvalidParams:
        return image.num_steps >= model.num_steps
    return True
