"""Forecasts the device-seconds of an image before it is drawn, from the images that were drawn before it."""

import threading
from collections import defaultdict
from collections.abc import Sequence

from safelight.pipeline.params import GenerationParams
from safelight.service.messages import ImageUsage

DECAY = 0.98  # of a rate with each image: the highest one counts, for some fifty images
UNKNOWN_SECONDS = 1.0  # of an image, before one was drawn


class DeviceSecondsForecast:
    """Each model's highest seconds of late per text, per step of a row of pixels, and per decoded pixel.

    The highest, because what is reserved for images under way must suffice for all of them.
    """

    def __init__(self) -> None:
        self._rates: defaultdict[str, dict[str, float]] = defaultdict(dict)  # by model and stage
        self._lock = threading.Lock()

    def observe(self, model: str, params: GenerationParams, usage: ImageUsage) -> None:
        """Learn from an image that `model` drew."""
        work = _work(params)
        with self._lock:
            rates = self._rates[model]
            for stage, cost in usage.stages.items():
                rate = cost.device_seconds / work[stage]
                rates[stage] = max(rate, DECAY * rates.get(stage, 0.0))

    def seconds(self, model: str, images: Sequence[GenerationParams]) -> float:
        """What the images will take on the devices of `model`, added up."""
        with self._lock:
            rates = self._rates.get(model)
            if not rates:
                return UNKNOWN_SECONDS * len(images)
            return sum(rate * work[stage] for work in map(_work, images) for stage, rate in rates.items())


def _work(params: GenerationParams) -> dict[str, float]:
    pixels = params.width * params.height
    rows = 2 if params.guidance_scale > 1 else 1
    return {"encode": 1.0, "denoise": max(params.steps_taken, 1) * rows * pixels, "decode": pixels}
