"""Readiness: every stage has drawn a warm-up image, and every stage answers."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from safelight.pipeline.catalog.model_info import MIN_STEPS, ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.errors import BrokenImage, ImageRefused, ModelNotFound, ServiceError
from safelight.service.http.schemas import Readiness, StageReadiness
from safelight.service.messages import ImageFormat, ImageUsage, RequestContext, StageStatus
from safelight.service.model_backends import ModelBackends

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
Observe = Callable[[str, Sequence[GenerationParams], Sequence[ImageUsage]], None]


class WarmUp:
    """Draws one image of every model when the gateway starts, and reports readiness.

    A model that is added later has drawn its image before it is served.

    Args:
        dispatcher: Draws them.
        backends: The models.
        observe: Learns what an image of a model took.
    """

    def __init__(
        self, dispatcher: RequestDispatcher, backends: ModelBackends, observe: Observe | None = None
    ):
        self._dispatcher = dispatcher
        self._observe = observe
        self._images = {model.id: make_warm_up_image(model) for model in backends.models}
        self._done: set[str] = set()
        self._has_failed = False
        self._reason: str | None = None

    @property
    def _is_done(self) -> bool:
        return self._done >= self._images.keys()

    async def run(self) -> None:
        """Try until the images are drawn, or until a model turns out not to be able to draw."""
        while not (self._is_done or self._has_failed):
            await asyncio.gather(*map(self._draw, self._images.keys() - self._done))
            if not self._is_done:
                await asyncio.sleep(RETRY_SECONDS)

    async def report(self) -> Readiness:
        """The readiness of the stages, each with those of its name of all models together."""
        models = (await self._dispatcher.status_of_all()).values()
        stages = {stage: self._readiness(stage, [model.get(stage) for model in models]) for stage in STAGES}
        ready = self._is_done and all(stage.ready for stage in stages.values())
        return Readiness(ready=ready, stages=stages, reason=self._reason, failed=self._has_failed)

    async def _draw(self, model_id: str) -> None:
        try:
            images = [self._images[model_id]]
            results = await self._dispatcher.generate(images, ImageFormat(), RequestContext(model=model_id))
            if self._observe is not None:
                self._observe(model_id, images, [result.usage for result in results])
            self._done.add(model_id)
            self._reason = None if self._is_done else self._reason
        except ImageRefused:  # which shows that the classifier works, too
            self._done.add(model_id)
            self._reason = None if self._is_done else self._reason
        except ModelNotFound:  # it was removed while it was tried
            del self._images[model_id]
        except ServiceError as error:
            self._reason = str(error)
            self._has_failed = isinstance(error, BrokenImage)
            logger.warning("the warm-up image of %s failed: %s", model_id, error)

    def _readiness(self, stage: str, statuses: list[StageStatus | None]) -> StageReadiness:
        """The readiness of a stage by its status for every model."""
        answers = [status for status in statuses if status is not None]
        images = [status.images for status in answers]
        return StageReadiness(
            ready=len(answers) == len(statuses) and (self._is_done or all(images)),
            asleep=any(status.is_asleep for status in answers),
            # models may share the other stages, which then answer once for each of them
            pictures=sum(images) if stage == "denoise" else max(images, default=0),
        )


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
