"""A real engine whose ticks a test can hold back, so that it sees what comes between them."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.params import GenerationParams
from safelight.service.stages.denoise import DenoiseStage
from safelight.service.stages.engine_thread import Abort

DIVERGING = "diverge"  # the prompt of a sample that diverges: its text has no valid numbers


class TickGate:
    """How many ticks the engine may run. Open at first; called from other threads than the engine's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticks_left: int | None = None  # None: any number
        self.num_ticks = 0  # that went through
        self.wake: Callable[[], None] = lambda: None  # the engine's thread, to look again

    def hold(self) -> None:
        self._set(0)

    def open(self) -> None:
        self._set(None)

    def allow(self, ticks: int) -> None:
        """Let so many more ticks go through the closed gate."""
        with self._lock:
            assert self._ticks_left is not None
            self._ticks_left += ticks
        self.wake()

    @property
    def is_closed(self) -> bool:
        return self._ticks_left == 0

    def take(self) -> bool:
        """Whether one tick may go through now."""
        with self._lock:
            if self._ticks_left == 0:
                return False
            if self._ticks_left is not None:
                self._ticks_left -= 1
            self.num_ticks += 1
            return True

    def _set(self, ticks: int | None) -> None:
        with self._lock:
            self._ticks_left = ticks
        self.wake()


class HeldEngine:
    """`engine` behind `gate`. While the gate is closed, its thread waits for commands, and obeys them."""

    def __init__(self, engine: Engine, gate: TickGate):
        self._engine = engine
        self._gate = gate
        self._has_ticked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def last_tick(self) -> Any:
        """Of the latest `step`; None if it was held back, so that no tick is counted twice."""
        return self._engine.last_tick if self._has_ticked else None

    @property
    def has_work(self) -> bool:
        return self._engine.has_work and not (self._has_samples and self._gate.is_closed)

    def add(self, request_id: str, params: GenerationParams, cond: Any, *others: Any) -> None:
        if params.prompt == DIVERGING:
            cond = replace(cond, states=torch.full_like(cond.states, torch.nan))
        self._engine.add(request_id, params, cond, *others)

    def step(self) -> list[SampleOutcome]:
        """Run one tick if the gate lets it through. A sample that was aborted leaves in any case."""
        self._has_ticked = not self._has_samples or self._gate.take()
        return self._engine.step() if self._has_ticked else []

    @property
    def _has_samples(self) -> bool:
        return bool(self._engine.num_running or self._engine.num_waiting)


class HeldDenoiseStage(DenoiseStage):
    """A denoising stage whose engine is behind `gate`."""

    def __init__(self, make_engine: Callable[[], Engine], *others: Any, gate: TickGate):
        super().__init__(lambda: cast(Engine, HeldEngine(make_engine(), gate)), *others)
        gate.wake = lambda: self._loop.commands.put(Abort("nobody"))  # a command without effect
