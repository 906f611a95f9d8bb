"""Decoding: latents to pixels and a file, previews after images; and the reverse for edits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safelight.pipeline.params import GenerationParams, StageCost
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.errors import BrokenImage, ServiceError
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    DenoiseResult,
    EncodedSource,
    ImageFormat,
    ImageUsage,
    Preview,
    PreviewLatents,
    RequestContext,
    SourceReport,
    Upload,
)
from safelight.service.moderation.image_classifier import ImageClassifier, refusal
from safelight.service.stages.batched_stage import BatchedStage
from safelight.service.stages.preview_budget import PreviewBudget
from safelight.service.stages.upload_reader import ReadSource, UploadReader

if TYPE_CHECKING:
    import numpy as np

    from safelight.pipeline.engine.image_decoder import ImageDecoder
    from safelight.pipeline.engine.source_image import SourceImage
    from safelight.pipeline.engine.source_latents import SourceLatents

# The last argument is the id of the image's model; empty: the first that the stage serves.
WriteImage = Callable[["np.ndarray", ImageFormat, GenerationParams, str], bytes]
# A preview's file holds no parameters; the flag says whether its image is an edit.
WritePreview = Callable[["np.ndarray", ImageFormat, bool], bytes]
PREVIEW_PRIORITY = 1  # after that of images, which is 0


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """The latents of one image, and the file format to write."""

    denoised: DenoiseResult
    params: GenerationParams
    output: ImageFormat
    context: RequestContext = NO_CONTEXT
    source: EncodedSource | None = None  # of an edit
    arrived: float = field(default_factory=time.perf_counter)


class DecodeStage(BatchedStage["ImageDecoder", DecodeJob, DecodeResult | ServiceError]):
    """Hosts an image decoder. A job without an image has an error as its result.

    Args:
        make_decoder: Loads the decoder; called on the stage's thread.
        write_image: Writes pixels as a file's bytes; called on the stage's thread.
        write_preview: Likewise for previews.
        read_source: Reads the files of an edit; called on a thread of its own.
        make_classifier: Loads the classifier of images; called on the stage's thread. None: there is none.
    """

    def __init__(
        self,
        make_decoder: Callable[[], ImageDecoder],
        write_image: WriteImage,
        write_preview: WritePreview,
        read_source: ReadSource | None = None,
        make_classifier: Callable[[], ImageClassifier] | None = None,
    ):
        self._write_image, self._write_preview = write_image, write_preview
        self._queued_previews: dict[str, Future[Preview | None]] = {}  # at most one of each image
        self._preview_budget = PreviewBudget()  # used by the worker thread only
        self._classifier: ImageClassifier | None = None

        def make() -> ImageDecoder:
            self._classifier = None if make_classifier is None else make_classifier()
            return make_decoder()

        super().__init__("decode", make)
        self._reader = UploadReader(read_source, self.meter)

    async def decode(
        self,
        denoised: DenoiseResult,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: EncodedSource | None = None,
    ) -> DecodeResult:
        """Decode one image; raises `BrokenImage`, or `ImageRefused` by the classifier."""
        return image_or_raise(await self.run(DecodeJob(denoised, params, output, context, source)))

    async def prepare(
        self, upload: Upload, context: RequestContext = NO_CONTEXT
    ) -> tuple[EncodedSource, SourceReport]:
        """Read and encode the files of an edit; an upload that is refused is charged to its request, too.

        Raises:
            InvalidParams: A file cannot be edited.
            BrokenImage: The autoencoder left no valid numbers.
        """
        with self.meter.count_jobs(1):
            image, read_cost = await self._reader.read(upload, context)
            arrived = time.perf_counter()
            latents, cost = await self._worker.call(lambda network: _encode(network, image, arrived))
        self.meter.record_usage(context, cost)
        report = SourceReport(image.size, image.uploaded, image.crop, read_cost + cost)
        return EncodedSource(latents, image), report

    def close(self) -> None:
        super().close()
        self._reader.close()

    async def run_batch(self, jobs: Sequence[DecodeJob]) -> list[DecodeResult | ServiceError]:
        for job in jobs:
            self._drop_preview(job.denoised.image_id)
        return await super().run_batch(jobs)

    async def decode_preview(
        self,
        preview: PreviewLatents,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: EncodedSource | None = None,
    ) -> Preview | None:
        """Decode a preview when no image waits.

        Returns:
            None if the preview was dropped: a newer one or the image itself came first, it would cost more
            than it may, or its latents cannot be decoded.
        """
        self._drop_preview(preview.image_id)
        call = self._worker.submit(
            lambda network: self._decode_preview(network, preview, output, context, source),
            PREVIEW_PRIORITY,
        )
        self._queued_previews[preview.image_id] = call
        decoding = asyncio.wrap_future(call)
        try:
            await asyncio.wait({decoding})
            return None if decoding.cancelled() else decoding.result()
        finally:
            decoding.cancel()
            if self._queued_previews.get(preview.image_id) is call:
                del self._queued_previews[preview.image_id]

    def _drop_preview(self, image_id: str) -> None:
        """Cancel the queued preview of an image, if there is one and it is not being decoded."""
        if (call := self._queued_previews.pop(image_id, None)) is not None:
            call.cancel()

    def _decode_preview(
        self,
        network: ImageDecoder,
        preview: PreviewLatents,
        output: ImageFormat,
        context: RequestContext,
        source: EncodedSource | None,
    ) -> Preview | None:
        """Decode, write and charge a preview, on the worker thread.

        Its wait is not counted: it delays nobody. Reduced previews cost more per operation than images do, so
        the cost curve does not learn from them.
        """
        started = time.perf_counter()
        height, width = preview.latents.shape[1:]
        curve = self._status.curve or UNKNOWN
        estimates = {k: curve.seconds_for(n) for k, n in network.preview_flops(preview.latents).items()}
        scale = self._preview_budget.choose((height, width), preview.budget_seconds, estimates)
        if scale is None:
            return None
        decoded = network.decode_preview(preview.latents, scale)
        if isinstance(decoded, ArithmeticError):
            return None
        pixels, cost = decoded
        if scale == 1:
            self._update_curve(cost)
        if source is not None:
            pixels = source.image.paste(pixels)
        if self._refusal(pixels) is not None:
            return None
        image = self._write_preview(pixels, output, source is not None)
        cost = replace(cost, device_seconds=time.perf_counter() - started)
        self._preview_budget.spend((height, width), scale, cost.device_seconds)
        self.meter.record_usage(context, cost)
        self._status = replace(self._status, previews=self._status.previews + 1)
        return Preview(preview.index, image, cost)

    def _process(
        self, network: ImageDecoder, jobs: Sequence[DecodeJob], started: float
    ) -> list[DecodeResult | ServiceError]:
        results: list[DecodeResult | ServiceError] = []
        for first in range(0, len(jobs), network.max_batch):
            batch = jobs[first : first + network.max_batch]
            images = network.decode([job.denoised.latents for job in batch])
            for job, image in zip(batch, images, strict=True):
                if isinstance(image, ArithmeticError):
                    results.append(BrokenImage(f"The model drew no image: {image}."))
                else:
                    results.append(self._finish(job, *image, started))
        self._status = replace(self._status, images=self._status.images + len(jobs))
        return results

    def _refusal(self, pixels: np.ndarray) -> ServiceError | None:
        """Why an image may not be sent; None if it may."""
        return None if self._classifier is None else refusal(self._classifier, pixels)

    def _finish(
        self, job: DecodeJob, pixels: np.ndarray, cost: StageCost, started: float
    ) -> DecodeResult | ServiceError:
        """Write the file and record the usage of one decoded image, also of one that is refused."""
        self._update_curve(cost)
        write_started = time.perf_counter()
        if job.source is not None:
            pixels = job.source.image.paste(pixels)
        refused = self._refusal(pixels)
        image = b"" if refused else self._write_image(pixels, job.output, job.params, job.context.model)
        # writing blocks the stage for all other images, so it counts as device time
        device_seconds = cost.device_seconds + time.perf_counter() - write_started
        queue_seconds = max(0.0, started - job.arrived)
        cost = replace(cost, device_seconds=device_seconds, queue_seconds=queue_seconds)
        self.meter.record_usage(job.context, cost)
        if refused:
            return refused
        denoised = job.denoised
        return DecodeResult(image, _usage(denoised, cost))

    def _update_curve(self, cost: StageCost) -> None:
        curve = (self._status.curve or UNKNOWN).updated(cost.flops, cost.device_seconds)
        self._status = replace(self._status, curve=curve)


def _encode(network: ImageDecoder, image: SourceImage, arrived: float) -> tuple[SourceLatents, StageCost]:
    queue_seconds = time.perf_counter() - arrived
    try:
        latents, cost = network.encode(image)
    except ArithmeticError as error:
        raise BrokenImage(f"The model could not read the image: {error}.") from None
    return latents, replace(cost, queue_seconds=queue_seconds)


def _usage(denoised: DenoiseResult, cost: StageCost) -> ImageUsage:
    return ImageUsage(denoised.text, denoised.encode, denoised.denoise, cost, forecast=denoised.forecast)


def image_or_raise(result: DecodeResult | ServiceError) -> DecodeResult:
    """Return the image of a job; raise its error if it has none."""
    if isinstance(result, ServiceError):
        raise result
    return result
