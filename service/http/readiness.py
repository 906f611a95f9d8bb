"""When the service may be sent requests: once every stage has drawn a warm-up image, while every stage answers."""

import asyncio
import logging

from safelight.pipeline.catalog.model_info import MIN_STEPS, ModelInfo
from safelight.pipeline.params import GenerationParams
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import BrokenImage, ServiceError
from safelight.service.http.schemas import Readiness, StageReadiness
from safelight.service.messages import ImageFormat

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class WarmUp:
    """Draws one image when the gateway starts, and says how far that has come."""

    def __init__(self, dispatcher: RequestDispatcher, model: ModelInfo):
        self._painter = dispatcher
        self._image = make_warm_up_image(model)
        self._done = False
        self._failed = False
        self._trouble: str | None = None

    async def run(self) -> None:
        while not (self._done or self._failed):
            try:
                await self._painter.generate([self._image], ImageFormat())
                self._done, self._trouble = True, None
            except ServiceError as error:
                self._trouble = str(error)
                self._failed = isinstance(error, BrokenImage)
                logger.warning("the warm-up image failed: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def report(self) -> Readiness:
        status = await self._painter.status()
        stages = {
            name: StageReadiness(
                ready=stage is not None and (self._done or stage.images > 0),
                pictures=stage.images if stage else 0,
            )
            for name, stage in status.items()
        }
        ready = self._done and all(stage.ready for stage in stages.values())
        return Readiness(ready=ready, stages=stages, reason=self._trouble, failed=self._failed)


def make_warm_up_image(model: ModelInfo) -> GenerationParams:
    """The smallest request that goes through everything: native size, guidance as usual, few steps."""
    width, height = model.native_size
    prompt = "0" if model.labels else "warm-up"  # a class
    return GenerationParams(prompt, "", width, height, MIN_STEPS, model.guidance_scale, model.solver, seed=0)
