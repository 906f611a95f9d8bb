"""Full ticks: their model FLOPs utilisation (MFU), and the share of time outside the network."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from safelight.models.networks.interface import PackedNetwork
from safelight.pipeline.assembly.engine import engine_on
from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest
from safelight.pipeline.benchmark.replay import LARGEST_BATCH
from safelight.pipeline.engine.runner import StepRunner

TICKS = 30


@dataclass(frozen=True, slots=True)
class FullTicks:
    """Figures of ticks with as many rows as the engine's limit."""

    overhead_share: float  # of the seconds, outside the network's evaluation
    mfu: float  # operations a second over those of the best matrix product


def measure_full_ticks(subject: EngineUnderTest, peak: float) -> FullTicks:
    """Run full ticks of equal samples; `peak` is the best matrix product in operations a second."""
    params, texts, clock = subject.single_image(), subject.texts, NetworkClock()
    # An engine that is not calibrated: with its unknown curve the batcher finds no tick too large.
    engine = engine_on(_timed_runner(subject.runner, clock), subject.model)
    for seed in range(LARGEST_BATCH):
        engine.add(str(seed), replace(params, seed=seed, num_steps=TICKS), texts[params.prompt], texts[""])
    seconds, network_seconds, flops = 0.0, 0.0, 0
    for tick in range(TICKS):
        clock.seconds = 0.0
        started = time.perf_counter()
        engine.step()
        if tick and engine.last_tick:  # the first tick also starts the samples
            seconds += time.perf_counter() - started
            network_seconds += clock.seconds
            flops += engine.last_tick.flops
    return FullTicks(1.0 - network_seconds / seconds, flops / seconds / peak)


@dataclass(slots=True)
class NetworkClock:
    """Adds up the seconds of network evaluations."""

    seconds: float = 0.0


def _timed_runner(runner: StepRunner, clock: NetworkClock) -> StepRunner:
    """A runner of the same network whose evaluations are added to `clock`."""
    timed = _TimedNetwork(runner.network, runner.wait, clock)
    return StepRunner(timed, runner.dtype, runner.device, runner.clock)


@dataclass(frozen=True, slots=True)
class _TimedNetwork:
    """A network whose evaluations are timed."""

    network: PackedNetwork
    wait: Callable[[], None]  # for the device to finish
    clock: NetworkClock

    def predict(self, *args: Any) -> Any:
        started = time.perf_counter()
        out = self.network.predict(*args)
        self.wait()
        self.clock.seconds += time.perf_counter() - started
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)
