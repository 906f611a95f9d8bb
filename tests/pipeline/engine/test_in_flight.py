"""Ticks that are queued ahead of the device, as on a GPU, and ticks that do not fit into its memory."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from safelight.pipeline.assembly.engine import engine_on
from safelight.pipeline.engine.device_clock import HostClock
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.params import FinishReason, GenerationParams, PreviewRequest
from tests.pipeline.parts import add, alone, drain, latents_of, model, params, runner

AHEAD = HostClock(runs_ahead=True)
IMAGES: Sequence[GenerationParams] = (
    params(seed=1),
    params(seed=2, num_steps=2, guidance_scale=1.0),
    params(seed=3, num_steps=9, solver="ddpm"),
    params(seed=4, num_steps=8, guidance_stride=2),
    params(seed=5, num_steps=1, solver="euler"),
)


def engine_ahead(network: Any = None, max_rows: int = 16) -> Engine:
    """An engine that is one tick ahead of its device, a processor."""
    used = runner()
    ahead = StepRunner(network or used.network, used.dtype, used.device, AHEAD)
    return engine_on(ahead, model(), max_rows=max_rows, max_tokens=10**6)


def test_images_are_the_same_as_without_a_queue() -> None:
    engine = engine_ahead(max_rows=6)
    for number, image in enumerate(IMAGES):
        add(engine, str(number), image)
    outcomes = drain(engine)
    for number, image in enumerate(IMAGES):
        outcome = outcomes[str(number)]
        assert torch.equal(latents_of(outcome), alone(image))
        assert outcome.usage.ticks == engine._make_plan(image).nfe
        assert outcome.usage.cost.device_seconds > 0.0
    assert engine.num_running == 0 and engine.open_seconds == 0.0


def test_a_tick_is_queued_before_the_last_one_is_waited_for() -> None:
    """The sample leaves with the call after its last tick."""
    engine = engine_ahead()
    add(engine, "x", params(num_steps=2, solver="euler"))
    for _ in range(2):
        assert engine.step() == []
    assert (engine.num_running, engine.has_work) == (1, True)
    with pytest.raises(ValueError, match="already in the engine"):
        add(engine, "x", params())
    (outcome,) = engine.step()
    assert outcome.reason is FinishReason.DONE
    assert not engine.has_work


def test_every_tick_is_recorded_once() -> None:
    """With the work that it had, although the next one is queued when it is recorded."""
    engine, rows = engine_ahead(), []
    add(engine, "x", params(num_steps=4, guidance_interval=(0.0, 0.5), solver="euler"))
    while engine.has_work:
        engine.step()
        assert engine.last_tick is not None
        rows.append(engine.last_tick.rows)
    assert rows == [0, 1, 1, 2, 2]


def test_an_aborted_sample_pays_for_its_tick_in_flight() -> None:
    engine = engine_ahead()
    for name in ("stays", "leaves"):
        add(engine, name, params(num_steps=3, solver="euler"))
    engine.step()
    engine.step()
    engine.abort("leaves")
    outcomes = {outcome.request_id: outcome for outcome in engine.step()}
    assert outcomes["leaves"].reason is FinishReason.ABORTED
    assert outcomes["leaves"].usage.ticks == 2
    assert engine.last_tick is not None and engine.last_tick.rows == 4  # of the tick with both
    assert torch.equal(latents_of(drain(engine)["stays"]), alone(params(num_steps=3, solver="euler")))


def test_previews_are_those_without_a_queue() -> None:
    engines = (engine_ahead(), engine_on(runner(), model()))
    for engine in engines:
        add(engine, "x", params(num_steps=6), previews=PreviewRequest(2))
        drain(engine)
    ahead, expected = ([(p.index, p.latents.tolist()) for p in e.take_previews()] for e in engines)
    assert ahead == expected and len(expected) == 2


class SmallMemory:
    """A network that runs out of memory above a number of rows."""

    def __init__(self, network: Any, max_rows: int):
        self._network, self._max_rows = network, max_rows
        self.refused: list[int] = []

    def predict(self, latents: Sequence[Tensor], rows: Any, steps: Sequence[int]) -> list[Tensor]:
        if len(steps) > self._max_rows:
            self.refused.append(len(steps))
            raise torch.OutOfMemoryError("no room")
        result: list[Tensor] = self._network.predict(latents, rows, steps)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


@pytest.mark.parametrize("clock", [HostClock(), AHEAD])
def test_a_tick_that_does_not_fit_is_made_smaller(clock: HostClock) -> None:
    """The images are as alone, and no later tick is tried that is as large."""
    network = SmallMemory(runner().network, 4)
    small: Any = StepRunner(network, runner().dtype, runner().device, clock)
    engine = engine_on(small, model(), max_rows=16, max_tokens=10**6)
    images = [params(seed=seed, num_steps=3) for seed in range(6)]
    for number, image in enumerate(images):
        add(engine, str(number), image)
    outcomes = drain(engine)
    assert network.refused == [12, 6]
    for number, image in enumerate(images):
        assert torch.equal(latents_of(outcomes[str(number)]), alone(image))


def test_an_image_that_does_not_fit_alone_fails_and_the_others_go_on() -> None:
    network = SmallMemory(runner().network, 1)
    small: Any = StepRunner(network, runner().dtype, runner().device)
    engine = engine_on(small, model(), max_rows=16)
    add(engine, "guided", params())
    add(engine, "plain", replace(params(), guidance_scale=1.0))
    outcomes: dict[str, SampleOutcome] = drain(engine)
    assert outcomes["plain"].reason is FinishReason.DONE
    assert outcomes["guided"].reason is FinishReason.TOO_LARGE
    assert outcomes["guided"].error == "the device has too little memory for an image of this size"
