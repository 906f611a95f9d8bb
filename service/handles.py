"""The gateway's backend on Ray Serve: pictures go from stage to stage by reference, and only the last answer comes back."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from pipeline.params import GenerationParams
from service.backend import STAGES
from service.payloads import Drawn, Output, StageCensus

T = TypeVar("T")
Handle = DeploymentHandle[Any]

CENSUS_SECONDS = 2.0  # a stage that needs longer to say how it is, is not ready


class SplitBackend:
    """Each stage is a deployment of its own."""

    def __init__(self, encoder: Handle, denoiser: Handle, decoder: Handle):
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder

    async def draw(self, params: GenerationParams, output: Output) -> Drawn:
        conditioning = self._encoder.encode.remote(params)
        denoised = self._denoiser.generate.remote(conditioning, params)
        drawn = self._decoder.decode.remote(denoised, params, output)
        return await _result_or_cancel(drawn, denoised, conditioning)

    async def census(self) -> Mapping[str, StageCensus | None]:
        stages = (self._encoder, self._denoiser, self._decoder)
        answers = await asyncio.gather(*(_in_time(stage.census.remote()) for stage in stages))
        return dict(zip(STAGES, answers, strict=True))


class ColocatedBackend:
    """One deployment holds all three stages."""

    def __init__(self, studio: Handle):
        self._studio = studio

    async def draw(self, params: GenerationParams, output: Output) -> Drawn:
        return await _result_or_cancel(self._studio.draw.remote(params, output))

    async def census(self) -> Mapping[str, StageCensus | None]:
        return await _in_time(self._studio.census.remote()) or dict.fromkeys(STAGES)


async def _result_or_cancel(last: Any, *before: Any) -> Drawn:
    """The last call's result. Whatever else happens, none of the calls is left running."""
    try:
        drawn: Drawn = await last
        return drawn
    except BaseException:
        for response in (last, *before):
            response.cancel()
        raise


async def _in_time(answer: Awaitable[T]) -> T | None:
    try:
        return await asyncio.wait_for(answer, CENSUS_SECONDS)
    except Exception:
        return None
