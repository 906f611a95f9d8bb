"""The gateway's backend on Ray Serve: images go from stage to stage by reference, and only the last answer comes back."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence, Set
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.messages import NO_CONTEXT, DecodeResult, ImageFormat, RequestContext, StageStatus
from safelight.service.ray_serve.deferred import defer
from safelight.service.usage.events import UsageReport
from safelight.service.usage.report import AccountingReport
from safelight.service.usage.stage_snapshot import Snapshot

T = TypeVar("T")
Handle = DeploymentHandle[Any]

POST_SECONDS = 10.0  # after which a statement is posted again
STATUS_SECONDS = 2.0  # a stage that needs longer to say how it is, is not ready


class SplitBackend:
    """Each stage is a deployment of its own."""

    def __init__(self, encoder: Handle, denoiser: Handle, decoder: Handle, may_sleep: Set[str] = frozenset()):
        self._encoder = encoder
        self._denoiser = denoiser
        self._decoder = decoder
        self._may_sleep = may_sleep

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult:
        calls: list[Any] = []
        try:
            calls.append(self._encoder.encode.remote(params, context))
            calls.append(self._denoiser.generate.remote(await defer(calls[-1]), params, context))
            calls.append(self._decoder.decode.remote(await defer(calls[-1]), params, output, context))
            drawn: DecodeResult = await calls[-1]
            return drawn
        except BaseException:
            _cancel(calls)
            raise

    async def status(self) -> Mapping[str, StageStatus | None]:
        stages = dict(zip(STAGES, (self._encoder, self._denoiser, self._decoder), strict=True))
        awake = [name for name in stages if name not in self._may_sleep]  # a question would wake the others
        answers = await asyncio.gather(*(_in_time(stages[name].status.remote()) for name in awake))
        return dict.fromkeys(STAGES) | dict(zip(awake, answers, strict=True))


class ColocatedBackend:
    """One deployment holds all three stages."""

    def __init__(self, pipeline: Handle, may_sleep: Set[str] = frozenset()):
        self._pipeline = pipeline
        self._may_sleep = may_sleep

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult:
        call = self._pipeline.generate.remote(params, output, context)
        try:
            drawn: DecodeResult = await call
            return drawn
        except BaseException:
            _cancel([call])
            raise

    async def status(self) -> Mapping[str, StageStatus | None]:
        if self._may_sleep:
            return dict.fromkeys(STAGES)
        return await _in_time(self._pipeline.status.remote()) or dict.fromkeys(STAGES)


class RemoteLedger:
    """The ledger's replica, from wherever statements and questions come."""

    def __init__(self, ledger: Handle):
        self._ledger = ledger

    def post(self, statement: UsageReport) -> None:
        """For a reporter's thread: returns when it has been entered."""
        self._ledger.post.remote(statement).result(timeout_s=POST_SECONDS)

    async def status(self) -> Mapping[str, StageStatus | None]:
        return await _in_time(self._ledger.status.remote()) or dict.fromkeys(STAGES)

    async def snapshot(self) -> Snapshot:
        answer: Snapshot = await asyncio.wait_for(self._ledger.snapshot.remote(), STATUS_SECONDS)
        return answer

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        answer: AccountingReport = await asyncio.wait_for(
            self._ledger.report.remote(window, latest), STATUS_SECONDS
        )
        return answer


def _cancel(calls: Sequence[Any]) -> None:
    """Leave none of the calls running, the last one first."""
    for call in reversed(calls):
        call.cancel()


async def _in_time(answer: Awaitable[T]) -> T | None:
    try:
        return await asyncio.wait_for(answer, STATUS_SECONDS)
    except Exception:
        return None
