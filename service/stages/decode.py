"""Decoding: latents to pixels to the bytes of an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.errors import BrokenImage
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    DenoiseResult,
    ImageFormat,
    ImageUsage,
    RequestContext,
    StageStatus,
)
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.stages.worker import Worker

if TYPE_CHECKING:
    import numpy as np

    from safelight.pipeline.engine.image_decoder import ImageDecoder

WriteImage = Callable[["np.ndarray", ImageFormat, GenerationParams], bytes]


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """One image's latents, how it is to be written, and since when it waits."""

    denoised: DenoiseResult
    params: GenerationParams
    output: ImageFormat
    context: RequestContext = NO_CONTEXT
    arrived: float = field(default_factory=time.perf_counter)


class DecodeStage:
    """Hosts a decoder."""

    def __init__(self, make_decoder: Callable[[], ImageDecoder], write_image: WriteImage):
        self.books = UsageMeter("decode")
        self._worker = Worker(make_decoder, self.books)
        self._write_image = write_image
        self._status = StageStatus()

    async def decode(
        self,
        denoised: DenoiseResult,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
    ) -> DecodeResult:
        with self.books.jobs(1):
            return one_of_batch((await self.decode_batch([DecodeJob(denoised, params, output, context)]))[0])

    async def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[DecodeResult | BrokenImage]:
        """An image for each job, or why there is none. That they are here, whoever collects them has put into `books`."""
        return await self._worker.call(lambda decoder: self._decode(decoder, jobs))

    def status(self) -> StageStatus:
        return self._status

    def wait(self) -> None:
        """Until the network is loaded; raises what loading it raised."""
        self._worker.wait()

    def close(self) -> None:
        self._worker.close()

    def _decode(self, decoder: ImageDecoder, jobs: Sequence[DecodeJob]) -> list[DecodeResult | BrokenImage]:
        started = time.perf_counter()
        drawn: list[DecodeResult | BrokenImage] = []
        for first in range(0, len(jobs), decoder.max_batch):
            drawn += self._decode_chunk(decoder, jobs[first : first + decoder.max_batch], started)
        self._status = replace(self._status, images=self._status.images + len(jobs))
        self.books.took(time.perf_counter() - started, len(jobs))
        return drawn

    def _decode_chunk(
        self, decoder: ImageDecoder, jobs: Sequence[DecodeJob], started: float
    ) -> list[DecodeResult | BrokenImage]:
        results = decoder.decode([job.denoised.latents for job in jobs])
        drawn: list[DecodeResult | BrokenImage] = []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, ArithmeticError):
                drawn.append(BrokenImage(f"The model drew no image: {result}."))
                continue
            pixels, cost = result
            self._status = replace(
                self._status, curve=(self._status.curve or UNKNOWN).updated(cost.flops, cost.device_seconds)
            )
            began = time.perf_counter()
            image = self._write_image(pixels, job.output, job.params)
            spent = (
                cost.device_seconds + time.perf_counter() - began
            )  # nobody else can use the stage meanwhile
            decode = replace(cost, device_seconds=spent, queue_seconds=max(0.0, started - job.arrived))
            self.books.charge(job.context, decode)
            drawn.append(
                DecodeResult(
                    image, ImageUsage(job.denoised.text, job.denoised.encode, job.denoised.denoise, decode)
                )
            )
        return drawn


def one_of_batch(drawn: DecodeResult | BrokenImage) -> DecodeResult:
    """An image by itself: raises why there is none."""
    if isinstance(drawn, BrokenImage):
        raise drawn
    return drawn
