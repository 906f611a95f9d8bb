"""Decoding: latents to pixels to the bytes of an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.errors import BrokenImage
from safelight.service.messages import NOBODY, Denoised, Drawn, ImageUsage, Output, StageCensus, Ticket
from safelight.service.stages.usage_meter import StageBooks
from safelight.service.stages.worker import Worker

if TYPE_CHECKING:
    import numpy as np

    from safelight.pipeline.engine.image_decoder import Decoder

WriteImage = Callable[["np.ndarray", Output, GenerationParams], bytes]


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """One image's latents, how it is to be written, and since when it waits."""

    denoised: Denoised
    params: GenerationParams
    output: Output
    ticket: Ticket = NOBODY
    arrived: float = field(default_factory=time.perf_counter)


class DecodeStage:
    """Hosts a decoder."""

    def __init__(self, make_decoder: Callable[[], Decoder], write_image: WriteImage):
        self.books = StageBooks("decode")
        self._worker = Worker(make_decoder, self.books)
        self._write_image = write_image
        self._census = StageCensus()

    async def decode(
        self, denoised: Denoised, params: GenerationParams, output: Output, ticket: Ticket = NOBODY
    ) -> Drawn:
        with self.books.jobs(1):
            return one_of_batch((await self.decode_batch([DecodeJob(denoised, params, output, ticket)]))[0])

    async def decode_batch(self, jobs: Sequence[DecodeJob]) -> list[Drawn | BrokenImage]:
        """An image for each job, or why there is none. That they are here, whoever collects them has put into `books`."""
        return await self._worker.call(lambda decoder: self._decode(decoder, jobs))

    def census(self) -> StageCensus:
        return self._census

    def wait(self) -> None:
        """Until the network is loaded; raises what loading it raised."""
        self._worker.wait()

    def close(self) -> None:
        self._worker.close()

    def _decode(self, decoder: Decoder, jobs: Sequence[DecodeJob]) -> list[Drawn | BrokenImage]:
        started = time.perf_counter()
        drawn: list[Drawn | BrokenImage] = []
        for first in range(0, len(jobs), decoder.max_batch):
            drawn += self._decode_chunk(decoder, jobs[first : first + decoder.max_batch], started)
        self._census = replace(self._census, images=self._census.images + len(jobs))
        self.books.took(time.perf_counter() - started, len(jobs))
        return drawn

    def _decode_chunk(
        self, decoder: Decoder, jobs: Sequence[DecodeJob], started: float
    ) -> list[Drawn | BrokenImage]:
        results = decoder.decode([job.denoised.latents for job in jobs])
        drawn: list[Drawn | BrokenImage] = []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, ArithmeticError):
                drawn.append(BrokenImage(f"The model drew no image: {result}."))
                continue
            pixels, cost = result
            self._census = replace(
                self._census, curve=(self._census.curve or UNKNOWN).observed(cost.flops, cost.device_seconds)
            )
            began = time.perf_counter()
            image = self._write_image(pixels, job.output, job.params)
            spent = (
                cost.device_seconds + time.perf_counter() - began
            )  # nobody else can use the stage meanwhile
            decode = replace(cost, device_seconds=spent, queue_seconds=max(0.0, started - job.arrived))
            self.books.charge(job.ticket, decode)
            drawn.append(
                Drawn(image, ImageUsage(job.denoised.text, job.denoised.encode, job.denoised.denoise, decode))
            )
        return drawn


def one_of_batch(drawn: Drawn | BrokenImage) -> Drawn:
    """An image by itself: raises why there is none."""
    if isinstance(drawn, BrokenImage):
        raise drawn
    return drawn
