"""The engine's thread, and the calls and commands that it takes from other threads.

The thread repeats: carry out the waiting commands, run one tick, pass on the samples that left the engine. It
sleeps on the command queue when there is no work, and builds a new engine when one fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import (
    NO_PREVIEWS,
    NOT_URGENT,
    FinishReason,
    GenerationParams,
    PreviewRequest,
    Urgency,
)
from safelight.pipeline.scheduling.selection import full_tick_seconds
from safelight.service.errors import ServiceError, StageFailed, StageLost, as_service_error
from safelight.service.messages import EncodeResult, RequestContext, StageStatus
from safelight.service.stages.admission import StageAdmission
from safelight.service.stages.tick_watchdog import TickWatchdog
from safelight.service.stages.usage_meter import UsageMeter

if TYPE_CHECKING:
    from safelight.pipeline.engine.engine import Engine, SampleOutcome
    from safelight.pipeline.engine.previews import SamplePreview
    from safelight.pipeline.engine.source_latents import SourceLatents

logger = logging.getLogger(__name__)

DENOISER = "denoise"  # the stage


@dataclass(frozen=True, slots=True, eq=False)
class PendingCall:
    """A caller's image in the engine, and the future that the caller awaits."""

    id: str  # unique in this stage
    params: GenerationParams
    conditioning: EncodeResult
    context: RequestContext
    loop: asyncio.AbstractEventLoop
    # errors are results: asyncio would log an exception that nothing retrieves
    future: asyncio.Future[SampleOutcome | ServiceError]
    arrived: float  # by time.perf_counter
    deadline: float  # by time.perf_counter
    source: SourceLatents | None = None  # of an edit
    previews: PreviewRequest = NO_PREVIEWS
    on_preview: Callable[[SamplePreview], None] | None = None  # called on `loop`
    urgency: Urgency = NOT_URGENT

    def pass_on(self, preview: SamplePreview) -> None:
        """Give the caller a preview, from any thread."""
        if self.on_preview is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing awaits the image
                self.loop.call_soon_threadsafe(self.on_preview, preview)

    def settle(self, result: SampleOutcome | ServiceError) -> None:
        """Set the result, from any thread; the first one counts, later ones are ignored."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing awaits the result
            self.loop.call_soon_threadsafe(self._settle, result)

    def _settle(self, result: SampleOutcome | ServiceError) -> None:
        if not self.future.done():
            self.future.set_result(result)


@dataclass(frozen=True, slots=True)
class Abort:
    """The command to abort a sample."""

    sample_id: str


class Stop:
    """The command to end the thread."""


class EngineLoop(threading.Thread):
    """The only thread that touches the engine.

    Other threads may put `commands` and read `status`, `ready` and `failure`.

    Args:
        make_engine: Builds an engine; called on this thread, again after an engine has failed.
        meter: The stage's usage meter.
        admission: Decides which images are let in, and learns from the ticks.
        watchdog: Told of the ticks, if they are watched.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        meter: UsageMeter,
        admission: StageAdmission,
        watchdog: TickWatchdog | None = None,
    ):
        super().__init__(name="denoise", daemon=True)
        self.commands: SimpleQueue[PendingCall | Abort | Stop] = SimpleQueue()
        self.status = StageStatus()  # replaced as a whole after every tick, so that readers see one moment
        self.ready = threading.Event()  # the first engine is built, or has failed
        self.failure: Exception | None = None  # why there is no engine, and none will be built
        self._make_engine = make_engine
        self._meter = meter
        self._admission = admission
        self._watchdog = watchdog
        self._calls: dict[str, PendingCall] = {}  # their samples are in the engine
        self._held: deque[PendingCall] = deque()  # behind one that is drawn alone, or will be
        self.start()

    def run(self) -> None:
        with self._meter.busy():
            while self._run_engine():
                pass

    def _run_engine(self) -> bool:
        """Build and run an engine until it fails or the thread stops; return whether to build another."""
        try:
            with self._meter.starting():
                engine = self._make_engine()
        except Exception as error:
            self._refuse_calls(error)
            return False
        self.status = replace(
            self.status, attention=engine.attention, curve=engine.curve, peak_flops=engine.peak_flops
        )
        self._admission.begin(engine)
        self.ready.set()
        try:
            self._tick_until_stopped(engine)
            return False
        except Exception as error:
            logger.exception("the engine failed with %d samples in it; building another", len(self._calls))
            kind = type(error).__name__
            reason = f"The denoiser failed while the image was in it ({kind}); please try again."
            self._fail_calls(StageLost(reason, DENOISER))
            return True

    def _tick_until_stopped(self, engine: Engine) -> None:
        while self._run_commands(engine):
            outcomes = self._step(engine)
            # before the results: a caller that has its image must see it counted in the status
            self._update_status(engine, outcomes)
            self._meter.set_open_work(engine.open_seconds, engine.work_left)
            self._admission.observe(engine, outcomes)
            for preview in engine.take_previews():
                if call := self._calls.get(preview.request_id):
                    call.pass_on(preview)
            for outcome in outcomes:
                if call := self._calls.pop(outcome.request_id, None):
                    self._meter.record_usage(call.context, outcome.usage.cost, outcome.usage)
                    if outcome.reason is FinishReason.DONE:
                        self._meter.record_duration(outcome.usage.cost.device_seconds, jobs=1)
                    call.settle(outcome)
        self.failure = StageFailed("The denoiser was stopped while the image was in it; please try again.")
        self._fail_calls(self.failure)
        self._fail_held(self.failure)
        while (command := self._next_command(block=False)) is not None:
            if isinstance(command, PendingCall):
                command.settle(self.failure)

    def _step(self, engine: Engine) -> list[SampleOutcome]:
        """Run one tick, watched."""
        if self._watchdog is None:
            return engine.step()
        self._watchdog.begin(full_tick_seconds(engine.curve))
        try:
            return engine.step()
        finally:
            self._watchdog.end()

    def _run_commands(self, engine: Engine) -> bool:
        """Carry out all waiting commands, or, if the engine has no work, sleep until there is one.

        Returns False if one of them was `Stop`.
        """
        self._add_held(engine)
        block = not engine.has_work
        while (command := self._next_command(block)) is not None:
            block = False
            if isinstance(command, Stop):
                return False
            if isinstance(command, Abort):
                self._abort(engine, command.sample_id)
            else:
                self._held.append(command)
                self._add_held(engine)
        return True

    def _abort(self, engine: Engine, sample_id: str) -> None:
        for call in list(self._held):
            if call.id == sample_id:
                self._held.remove(call)
                call.settle(StageFailed())
        engine.abort(sample_id)

    def _add_held(self, engine: Engine) -> None:
        """Add the held calls to the engine in order, up to one that must wait.

        One that is to be drawn alone waits until the engine is empty, and those behind it until it has left.
        """
        while self._held:
            is_alone = any(call.context.is_alone for call in self._calls.values())
            if is_alone or (self._calls and self._held[0].context.is_alone):
                return
            self._add(engine, self._held.popleft())

    def _next_command(self, block: bool) -> PendingCall | Abort | Stop | None:
        try:
            return self.commands.get_nowait()
        except Empty:
            if not block:
                return None
        with self._meter.idle():
            return self.commands.get()

    def _add(self, engine: Engine, call: PendingCall) -> None:
        conditioning = call.conditioning
        try:
            engine.add(
                call.id,
                call.params,
                conditioning.cond,
                conditioning.uncond,
                call.arrived,
                call.deadline,
                call.source,
                call.previews,
                call.context.share,
                call.urgency,
            )
        except InvalidParams as error:
            call.settle(as_service_error(error))
        except Exception:  # only this sample fails; its batch-mates go on
            logger.exception("the engine refused a sample")
            call.settle(StageFailed())
        else:
            self._calls[call.id] = call

    def _update_status(self, engine: Engine, outcomes: list[SampleOutcome]) -> None:
        status, tick = self.status, engine.last_tick
        if tick and tick.rows:
            self._meter.record_tick(tick.seconds, tick.rows, tick.tokens, tick.expected_seconds)
        self.status = replace(
            status,
            images=status.images + sum(outcome.reason is FinishReason.DONE for outcome in outcomes),
            running=engine.num_running,
            waiting=engine.num_waiting,
            ticks=status.ticks + 1,
            rows=status.rows + (tick.rows if tick else 0),
            curve=engine.curve,
        )

    def _fail_calls(self, error: ServiceError) -> None:
        """Settle every call whose sample is in the engine with `error`."""
        for call in self._calls.values():
            call.settle(error)
        self._calls.clear()
        self._meter.count_open_work_as_lost()
        self._admission.clear()
        self.status = replace(self.status, running=0, waiting=0)

    def _fail_held(self, error: ServiceError) -> None:
        for call in self._held:
            call.settle(error)
        self._held.clear()

    def _refuse_calls(self, error: Exception) -> None:
        """Without an engine, fail every call until the thread is stopped, so that no caller hangs."""
        self.failure = error
        self.ready.set()
        self._fail_calls(StageFailed())
        self._fail_held(StageFailed())
        while not isinstance(command := self._next_command(block=True), Stop):
            if isinstance(command, PendingCall):
                command.settle(StageFailed())
