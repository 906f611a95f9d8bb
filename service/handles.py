"""The gateway's backend on Ray Serve: pictures go from stage to stage by reference, and only the last answer comes back."""

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from pipeline.params import GenerationParams
from service.backend import STAGES
from service.charges import Statement
from service.figures import AccountingFigures
from service.payloads import NOBODY, Drawn, Output, StageCensus, Ticket

T = TypeVar("T")
Handle = DeploymentHandle[Any]

POST_SECONDS = 10.0  # after which a statement is posted again
CENSUS_SECONDS = 2.0  # a stage that needs longer to say how it is, is not ready


class SplitBackend:
    """Each stage is a deployment of its own."""

    def __init__(self, encoder: Handle, denoiser: Handle, decoder: Handle):
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder

    async def draw(self, params: GenerationParams, output: Output, ticket: Ticket = NOBODY) -> Drawn:
        conditioning = self._encoder.encode.remote(params, ticket)
        denoised = self._denoiser.generate.remote(conditioning, params, ticket)
        drawn = self._decoder.decode.remote(denoised, params, output, ticket)
        return await _result_or_cancel(drawn, denoised, conditioning)

    async def census(self) -> Mapping[str, StageCensus | None]:
        stages = (self._encoder, self._denoiser, self._decoder)
        answers = await asyncio.gather(*(_in_time(stage.census.remote()) for stage in stages))
        return dict(zip(STAGES, answers, strict=True))


class ColocatedBackend:
    """One deployment holds all three stages."""

    def __init__(self, studio: Handle):
        self._studio = studio

    async def draw(self, params: GenerationParams, output: Output, ticket: Ticket = NOBODY) -> Drawn:
        return await _result_or_cancel(self._studio.draw.remote(params, output, ticket))

    async def census(self) -> Mapping[str, StageCensus | None]:
        return await _in_time(self._studio.census.remote()) or dict.fromkeys(STAGES)


class LedgerOnServe:
    """The ledger's replica, from wherever statements and questions come."""

    def __init__(self, ledger: Handle):
        self._ledger = ledger

    def post(self, statement: Statement) -> None:
        """For a courier's thread: returns when it has been entered."""
        self._ledger.post.remote(statement).result(timeout_s=POST_SECONDS)

    async def figures(self, window: float | None, latest: int) -> AccountingFigures:
        answer: AccountingFigures = await asyncio.wait_for(self._ledger.figures.remote(window, latest), CENSUS_SECONDS)
        return answer


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
