"""A gateway's backend without Ray: the three stages in this process."""

from collections.abc import Mapping

from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.inprocess import InProcessPipeline
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


class InProcessBackend:
    """A `Backend` that draws with `pipeline`."""

    def __init__(self, pipeline: InProcessPipeline) -> None:
        self._pipeline = pipeline

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        return await self._pipeline.generate(params, output, context, source, previews)

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        return await self._pipeline.prepare(upload, context)

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        return await self._pipeline.quote(params, context)

    async def status(self) -> Mapping[str, StageStatus | None]:
        return dict(zip(STAGES, (stage.status() for stage in self._pipeline.stages), strict=True))
