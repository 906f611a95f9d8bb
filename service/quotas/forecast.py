"""Forecasts the device-seconds of an image before it is drawn, from the images that were drawn before it."""

import threading
from collections.abc import Sequence

from safelight.pipeline.params import GenerationParams
from safelight.service.messages import ImageUsage

DECAY = 0.98  # of a rate with each image: the highest one counts, for some fifty images
UNKNOWN_SECONDS = 1.0  # of an image, before one was drawn


class DeviceSecondsForecast:
    """The highest seconds of late per text, per step of a row of pixels, and per decoded pixel.

    The highest, because what is reserved for images under way must suffice for all of them.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}  # by stage
        self._lock = threading.Lock()

    def observe(self, params: GenerationParams, usage: ImageUsage) -> None:
        """Learn from an image that was drawn."""
        work = _work(params)
        with self._lock:
            for stage, cost in usage.stages.items():
                rate = cost.device_seconds / work[stage]
                self._rates[stage] = max(rate, DECAY * self._rates.get(stage, 0.0))

    def seconds(self, images: Sequence[GenerationParams]) -> float:
        """What the images will take on devices, added up."""
        with self._lock:
            if not self._rates:
                return UNKNOWN_SECONDS * len(images)
            return sum(
                rate * work[stage] for work in map(_work, images) for stage, rate in self._rates.items()
            )


def _work(params: GenerationParams) -> dict[str, float]:
    pixels = params.width * params.height
    rows = 2 if params.guidance_scale > 1 else 1
    return {"encode": 1.0, "denoise": max(params.steps_taken, 1) * rows * pixels, "decode": pixels}
