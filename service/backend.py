"""The seam between the gateway and whatever draws."""

from collections.abc import Mapping
from typing import Protocol

from safelight.pipeline.params import GenerationParams
from safelight.service.messages import NO_CONTEXT, DecodeResult, ImageFormat, RequestContext, StageStatus

STAGES = ("encode", "denoise", "decode")


class Backend(Protocol):
    """Draws images. To cancel `draw` is to take the image out of the batch."""

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult: ...

    async def status(self) -> Mapping[str, StageStatus | None]:
        """How each of `STAGES` is; None for one that does not answer in time."""
        ...
