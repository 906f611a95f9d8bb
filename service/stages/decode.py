"""Decoding: latents to pixels, and pixels to the bytes of an image file; and the reverse for edits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safelight.pipeline.params import GenerationParams, StageCost
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.errors import BrokenImage
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    DenoiseResult,
    EncodedSource,
    ImageFormat,
    ImageUsage,
    RequestContext,
    SourceReport,
    Upload,
)
from safelight.service.stages.batched_stage import BatchedStage
from safelight.service.stages.upload_reader import ReadSource, UploadReader

if TYPE_CHECKING:
    import numpy as np

    from safelight.pipeline.engine.image_decoder import ImageDecoder
    from safelight.pipeline.engine.source_image import SourceImage
    from safelight.pipeline.engine.source_latents import SourceLatents

WriteImage = Callable[["np.ndarray", ImageFormat, GenerationParams], bytes]


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """The latents of one image, and the file format to write."""

    denoised: DenoiseResult
    params: GenerationParams
    output: ImageFormat
    context: RequestContext = NO_CONTEXT
    source: EncodedSource | None = None  # of an edit
    arrived: float = field(default_factory=time.perf_counter)


class DecodeStage(BatchedStage["ImageDecoder", DecodeJob, DecodeResult | BrokenImage]):
    """Hosts an image decoder. A job whose latents cannot be decoded has a `BrokenImage` as its result.

    Args:
        make_decoder: Loads the decoder; called on the stage's thread.
        write_image: Writes pixels as a file's bytes; called on the stage's thread.
        read_source: Reads the files of an edit; called on a thread of its own.
    """

    def __init__(
        self,
        make_decoder: Callable[[], ImageDecoder],
        write_image: WriteImage,
        read_source: ReadSource | None = None,
    ):
        self._write_image = write_image
        super().__init__("decode", make_decoder)
        self._reader = UploadReader(read_source, self.meter)

    async def decode(
        self,
        denoised: DenoiseResult,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: EncodedSource | None = None,
    ) -> DecodeResult:
        """Decode one image; raises `BrokenImage`."""
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

    def _process(
        self, network: ImageDecoder, jobs: Sequence[DecodeJob], started: float
    ) -> list[DecodeResult | BrokenImage]:
        results: list[DecodeResult | BrokenImage] = []
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

    def _finish(self, job: DecodeJob, pixels: np.ndarray, cost: StageCost, started: float) -> DecodeResult:
        """Write the file and record the usage of one decoded image."""
        curve = (self._status.curve or UNKNOWN).updated(cost.flops, cost.device_seconds)
        self._status = replace(self._status, curve=curve)
        write_started = time.perf_counter()
        if job.source is not None:
            pixels = job.source.image.paste(pixels)
        image = self._write_image(pixels, job.output, job.params)
        # writing blocks the stage for all other images, so it counts as device time
        device_seconds = cost.device_seconds + time.perf_counter() - write_started
        queue_seconds = max(0.0, started - job.arrived)
        cost = replace(cost, device_seconds=device_seconds, queue_seconds=queue_seconds)
        self.meter.record_usage(job.context, cost)
        denoised = job.denoised
        return DecodeResult(image, ImageUsage(denoised.text, denoised.encode, denoised.denoise, cost))


def _encode(network: ImageDecoder, image: SourceImage, arrived: float) -> tuple[SourceLatents, StageCost]:
    queue_seconds = time.perf_counter() - arrived
    try:
        latents, cost = network.encode(image)
    except ArithmeticError as error:
        raise BrokenImage(f"The model could not read the image: {error}.") from None
    return latents, replace(cost, queue_seconds=queue_seconds)


def image_or_raise(result: DecodeResult | BrokenImage) -> DecodeResult:
    """Return the image of a job; raise its error if it has none."""
    if isinstance(result, BrokenImage):
        raise result
    return result
