"""The gateway's backend on Ray Serve: images go from stage to stage by reference, and only the last answer comes back."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence, Set
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.messages import NOBODY, Drawn, Output, StageCensus, Ticket
from safelight.service.ray_serve.deferred import later
from safelight.service.usage.events import Statement
from safelight.service.usage.report import AccountingFigures
from safelight.service.usage.stage_snapshot import Measures

T = TypeVar("T")
Handle = DeploymentHandle[Any]

POST_SECONDS = 10.0  # after which a statement is posted again
CENSUS_SECONDS = 2.0  # a stage that needs longer to say how it is, is not ready


class SplitBackend:
    """Each stage is a deployment of its own."""

    def __init__(self, encoder: Handle, denoiser: Handle, decoder: Handle, may_sleep: Set[str] = frozenset()):
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder
        self._may_sleep = may_sleep

    async def draw(self, params: GenerationParams, output: Output, ticket: Ticket = NOBODY) -> Drawn:
        calls: list[Any] = []
        try:
            calls.append(self._encoder.encode.remote(params, ticket))
            calls.append(self._denoiser.generate.remote(await later(calls[-1]), params, ticket))
            calls.append(self._decoder.decode.remote(await later(calls[-1]), params, output, ticket))
            drawn: Drawn = await calls[-1]
            return drawn
        except BaseException:
            _cancel(calls)
            raise

    async def census(self) -> Mapping[str, StageCensus | None]:
        stages = dict(zip(STAGES, (self._encoder, self._denoiser, self._decoder), strict=True))
        awake = [name for name in stages if name not in self._may_sleep]  # a question would wake the others
        answers = await asyncio.gather(*(_in_time(stages[name].census.remote()) for name in awake))
        return dict.fromkeys(STAGES) | dict(zip(awake, answers, strict=True))


class ColocatedBackend:
    """One deployment holds all three stages."""

    def __init__(self, studio: Handle, may_sleep: Set[str] = frozenset()):
        self._studio = studio
        self._may_sleep = may_sleep

    async def draw(self, params: GenerationParams, output: Output, ticket: Ticket = NOBODY) -> Drawn:
        call = self._studio.draw.remote(params, output, ticket)
        try:
            drawn: Drawn = await call
            return drawn
        except BaseException:
            _cancel([call])
            raise

    async def census(self) -> Mapping[str, StageCensus | None]:
        if self._may_sleep:
            return dict.fromkeys(STAGES)
        return await _in_time(self._studio.census.remote()) or dict.fromkeys(STAGES)


class LedgerOnServe:
    """The ledger's replica, from wherever statements and questions come."""

    def __init__(self, ledger: Handle):
        self._ledger = ledger

    def post(self, statement: Statement) -> None:
        """For a courier's thread: returns when it has been entered."""
        self._ledger.post.remote(statement).result(timeout_s=POST_SECONDS)

    async def census(self) -> Mapping[str, StageCensus | None]:
        return await _in_time(self._ledger.census.remote()) or dict.fromkeys(STAGES)

    async def measures(self) -> Measures:
        answer: Measures = await asyncio.wait_for(self._ledger.measures.remote(), CENSUS_SECONDS)
        return answer

    async def figures(self, window: float | None, latest: int) -> AccountingFigures:
        answer: AccountingFigures = await asyncio.wait_for(
            self._ledger.figures.remote(window, latest), CENSUS_SECONDS
        )
        return answer


def _cancel(calls: Sequence[Any]) -> None:
    """Leave none of the calls running, the last one first."""
    for call in reversed(calls):
        call.cancel()


async def _in_time(answer: Awaitable[T]) -> T | None:
    try:
        return await asyncio.wait_for(answer, CENSUS_SECONDS)
    except Exception:
        return None
