"""Full ticks: their model FLOPs utilisation (MFU), and the share of time outside the network."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from safelight.models.networks.interface import PackedNetwork
from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest
from safelight.pipeline.benchmark.replay import LARGEST_BATCH
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.scheduling.cost_curve import UNKNOWN

TICKS = 30


@dataclass(frozen=True, slots=True)
class FullTicks:
    """Figures of ticks with as many rows as the engine's limit."""

    overhead_share: float  # of the seconds, outside the network's evaluation
    mfu: float  # operations a second over those of the best matrix product


def measure_full_ticks(subject: EngineUnderTest, peak: float) -> FullTicks:
    """Run full ticks of equal samples; `peak` is the best matrix product in operations a second."""
    engine, params, texts = subject.make_engine(), subject.single_image(), subject.texts
    engine = engine.calibrated(UNKNOWN)  # with this curve the batcher finds no tick too large
    for seed in range(LARGEST_BATCH):
        engine.add(str(seed), replace(params, seed=seed, num_steps=TICKS), texts[params.prompt], texts[""])
    seconds, network_seconds, flops = 0.0, 0.0, 0
    with timed(subject.runner) as clock:
        for tick in range(TICKS):
            before = clock.seconds
            started = time.perf_counter()
            engine.step()
            if tick and engine.last_tick:  # the first tick also starts the samples
                seconds += time.perf_counter() - started
                network_seconds += clock.seconds - before
                flops += engine.last_tick.flops
    return FullTicks(1.0 - network_seconds / seconds, flops / seconds / peak)


class NetworkClock:
    """Seconds of network evaluations so far."""

    seconds = 0.0


@contextmanager
def timed(runner: StepRunner) -> Iterator[NetworkClock]:
    """Add up the seconds that `runner`'s network evaluates, while the block runs."""
    clock, network = NetworkClock(), runner.network

    def predict(*args: Any) -> Any:
        started = time.perf_counter()
        out = network.predict(*args)
        runner.wait()
        clock.seconds += time.perf_counter() - started
        return out

    runner.network = _TimedNetwork(network, predict)
    try:
        yield clock
    finally:
        runner.network = network


@dataclass(frozen=True, slots=True)
class _TimedNetwork:
    """A network with another `predict`."""

    network: PackedNetwork
    predict: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)
