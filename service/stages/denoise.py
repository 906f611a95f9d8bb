"""Denoising: the engine on its own thread, and the bridge from asyncio to it.

The thread's whole life is: obey the commands that came, do one tick, hand out what left the batch. It sleeps on the
command queue when there is no work, and it outlives an engine that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import FinishReason, GenerationParams
from safelight.service.errors import DeadlineExceeded, ServiceError, StageFailed, as_service_error
from safelight.service.messages import NO_CONTEXT, DenoiseResult, EncodeResult, RequestContext, StageStatus
from safelight.service.stages.usage_meter import UsageMeter

if TYPE_CHECKING:
    from safelight.pipeline.engine.engine import Engine, SampleOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class PendingCall:
    """One image on its way through the engine, and the promise to whoever waits for it."""

    id: str  # unique in this stage, whatever ids clients choose
    params: GenerationParams
    conditioning: EncodeResult
    context: RequestContext
    loop: asyncio.AbstractEventLoop
    settled: asyncio.Future[
        SampleOutcome | ServiceError
    ]  # errors as values: a promise nobody reads must not complain
    arrived: float  # by time.perf_counter
    deadline: float

    def settle(self, result: SampleOutcome | ServiceError) -> None:
        """Callable from any thread, any number of times; the first result counts."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result: SampleOutcome | ServiceError) -> None:
        if not self.settled.done():
            self.settled.set_result(result)


@dataclass(frozen=True, slots=True)
class Abort:
    """The command to let a sample go."""

    sample_id: str


class Stop:
    """The command to end the thread."""


class DenoiseStage:
    """Hosts an engine; `generate` may be called from any number of tasks."""

    def __init__(self, make_engine: Callable[[], Engine], deadline_seconds: float = math.inf):
        """An image that is not done `deadline_seconds` after its text came to be encoded is of no use to anybody."""
        self._deadline_seconds = deadline_seconds
        self.books = UsageMeter("denoise")
        self._loop = EngineLoop(make_engine, self.books)
        self._ids = map(str, itertools.count())

    async def generate(
        self, conditioning: EncodeResult, params: GenerationParams, context: RequestContext = NO_CONTEXT
    ) -> DenoiseResult:
        """Denoise one image; when cancelled, return only after the engine has let the sample go."""
        if self._loop.broken is not None:
            raise StageFailed()
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        deadline = (
            now + self._deadline_seconds - conditioning.cost.queue_seconds - conditioning.cost.device_seconds
        )
        sample = PendingCall(
            next(self._ids), params, conditioning, context, loop, loop.create_future(), now, deadline
        )
        self._loop.commands.put(sample)
        if self._loop.broken is not None:  # its thread may have looked for the last time before this came
            sample.settle(StageFailed())
        try:
            return _denoised(await asyncio.shield(sample.settled), conditioning)
        except asyncio.CancelledError:
            await asyncio.shield(self._let_go(sample))
            raise

    def status(self) -> StageStatus:
        return self._loop.status

    def wait(self) -> None:
        """Until the engine is built; raises what building it raised."""
        self._loop.built.wait()
        self.check()

    def check(self) -> None:
        """Raise when there is no engine and there will be none."""
        if self._loop.broken is not None:
            raise self._loop.broken

    def close(self) -> None:
        self._loop.commands.put(Stop())
        self._loop.join()

    async def _let_go(self, sample: PendingCall) -> None:
        self._loop.commands.put(Abort(sample.id))
        await asyncio.wait({sample.settled})


class EngineLoop(threading.Thread):
    """The only thread that touches the engine. `samples` is its own; the rest is read by others."""

    def __init__(self, make_engine: Callable[[], Engine], books: UsageMeter):
        super().__init__(name="denoise", daemon=True)
        self._books = books
        self.commands: SimpleQueue[PendingCall | Abort | Stop] = SimpleQueue()
        self.status = (
            StageStatus()
        )  # replaced whole after every tick, so a reader on another thread sees one moment
        self.built = threading.Event()
        self.broken: Exception | None = None
        self._make_engine = make_engine
        self._samples: dict[str, PendingCall] = {}
        self.start()

    def run(self) -> None:
        with self._books.working():
            while self._live():
                pass

    def _live(self) -> bool:
        """One engine's life. False when there shall not be another."""
        try:
            with self._books.starting():
                engine = self._make_engine()
        except Exception as error:
            return self._refuse_all(error)
        self.status = replace(
            self.status, attention=engine.attention, curve=engine.curve, peak_flops=engine.peak_flops
        )
        self.built.set()
        try:
            return self._tick_until_stopped(engine)
        except Exception as error:
            logger.exception("the engine failed with %d samples in it; building another", len(self._samples))
            self._settle_all(
                StageFailed(
                    f"The denoiser failed while the image was in it ({type(error).__name__}); please try again."
                )
            )
            return True

    def _tick_until_stopped(self, engine: Engine) -> bool:
        while self._obey(engine):
            outcomes = engine.step()
            self._count(
                engine, outcomes
            )  # before they are handed out: a caller who is answered finds itself counted
            self._books.tell(engine.open_seconds, engine.work_left)
            for outcome in outcomes:
                if sample := self._samples.pop(outcome.request_id, None):
                    self._books.charge(sample.context, outcome.usage.cost, outcome.usage)
                    if outcome.reason is FinishReason.DONE:
                        self._books.took(outcome.usage.cost.device_seconds, jobs=1)
                    sample.settle(outcome)
        self.broken = StageFailed("The denoiser was stopped while the image was in it; please try again.")
        self._settle_all(self.broken)
        while (command := self._next_command(block=False)) is not None:
            if isinstance(command, PendingCall):
                command.settle(self.broken)
        return False

    def _obey(self, engine: Engine) -> bool:
        """Carry out every command that waits; with no work in the engine, sleep until one comes. False to stop."""
        block = not engine.has_work
        while (command := self._next_command(block)) is not None:
            block = False
            if isinstance(command, Stop):
                return False
            if isinstance(command, Abort):
                engine.abort(command.sample_id)
            else:
                self._add(engine, command)
        return True

    def _next_command(self, block: bool) -> PendingCall | Abort | Stop | None:
        try:
            return self.commands.get_nowait()
        except Empty:
            if not block:
                return None
        with self._books.resting():
            return self.commands.get()

    def _add(self, engine: Engine, sample: PendingCall) -> None:
        try:
            engine.add(
                sample.id,
                sample.params,
                sample.conditioning.cond,
                sample.conditioning.uncond,
                sample.arrived,
                sample.deadline,
            )
        except InvalidParams as error:
            sample.settle(as_service_error(error))
        except Exception:  # this sample's fault, not its neighbours'
            logger.exception("the engine refused a sample")
            sample.settle(StageFailed())
        else:
            self._samples[sample.id] = sample

    def _count(self, engine: Engine, outcomes: list[SampleOutcome]) -> None:
        seen, tick = self.status, engine.last_tick
        if tick and tick.rows:
            self._books.tick(tick.seconds, tick.rows, tick.tokens, tick.expected_seconds)
        self.status = replace(
            seen,
            images=seen.images + sum(outcome.reason is FinishReason.DONE for outcome in outcomes),
            running=engine.num_running,
            waiting=engine.num_waiting,
            ticks=seen.ticks + 1,
            rows=seen.rows + (tick.rows if tick else 0),
            curve=engine.curve,
        )

    def _settle_all(self, error: ServiceError) -> None:
        for sample in self._samples.values():
            sample.settle(error)
        self._samples.clear()
        self._books.lose()
        self.status = replace(self.status, running=0, waiting=0)

    def _refuse_all(self, error: Exception) -> bool:
        """Without an engine: refuse every sample that comes, so that nobody waits for ever."""
        self.broken = error
        self.built.set()
        self._settle_all(StageFailed())
        while not isinstance(command := self._next_command(block=True), Stop):
            if isinstance(command, PendingCall):
                command.settle(StageFailed())
        return False


def _denoised(result: SampleOutcome | ServiceError, conditioning: EncodeResult) -> DenoiseResult:
    if isinstance(result, ServiceError):
        raise result
    if result.reason is FinishReason.EXPIRED:
        raise DeadlineExceeded()
    if result.reason is not FinishReason.DONE or result.latents is None:
        logger.error("a sample left the engine as %s: %s", result.reason.value, result.error)
        raise StageFailed()
    return DenoiseResult(result.latents, conditioning.text, conditioning.cost, result.usage)
