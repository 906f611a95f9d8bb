"""The interface between the gateway and the stages that generate images."""

from collections.abc import Mapping
from typing import Protocol

from safelight.pipeline.params import GenerationParams
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    Quote,
    RequestContext,
    StageStatus,
    Upload,
)
from safelight.service.previews import PreviewSink

STAGES = ("encode", "denoise", "decode")


class Backend(Protocol):
    """Generates images."""

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        """Generate one image; cancelling the call takes the image out of the batch.

        Args:
            params: The image.
            output: The file's format.
            context: The request that it belongs to.
            source: Of an edit.
            previews: Gets the image's previews until the call returns.
        """
        ...

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        """Decode and encode the files of an edit. Raises `InvalidParams` for a file that cannot be edited."""
        ...

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        """What the denoiser would say of an image, if it came now."""
        ...

    async def status(self) -> Mapping[str, StageStatus | None]:
        """The status of each of `STAGES`; None for a stage that does not answer in time."""
        ...
