"""What the engine keeps between samples: never the wrong plan or text, and within its bounds."""

from collections import OrderedDict
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from safelight.models.networks.interface import Times
from safelight.models.packed.dit import Text
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine import plan_cache, runner
from safelight.pipeline.engine.plan_cache import PlanCache
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams, StageCost, TextReport
from tests.models.folders import write_pixart
from tests.pipeline.parts import add, drain, engine, latents_of, model, params, states
from tests.pipeline.parts import runner as tiny_runner
from tests.pipeline.reference_loop import reference

BASE = {"solver": "ddim", "eta": 0.3, "num_steps": 4, "guidance_scale": 5.0, "negative_prompt": "blue"}
# Two values of each field. Where the pair of another field needs it, more fields change, in both alike.
PAIRS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "prompt": ({}, {"prompt": "cat"}),
    "negative_prompt": ({}, {"negative_prompt": "red"}),
    "width": ({}, {"width": 96}),
    "height": ({}, {"height": 48}),
    "num_steps": ({}, {"num_steps": 5}),
    "guidance_scale": ({}, {"guidance_scale": 2.0}),
    "solver": ({"eta": 0.0}, {"eta": 0.0, "solver": "dpmpp_2m"}),
    "seed": ({}, {"seed": 2}),
    "image_index": ({}, {"image_index": 1}),
    "timestep_spacing": ({}, {"timestep_spacing": "karras"}),
    "eta": ({}, {"eta": 0.6}),
    "guidance_interval": ({}, {"guidance_interval": (0.3, 0.8)}),
    "guidance_stride": ({}, {"guidance_stride": 2}),
    "guidance_rescale": ({}, {"guidance_rescale": 0.7}),
}


def test_requests_that_differ_in_one_field_share_nothing_that_it_changes() -> None:
    """All of them in one engine; the results against the reference, which keeps nothing."""
    # tests/pipeline/engine/test_edits.py has those of edits
    assert PAIRS.keys() == {field.name for field in fields(GenerationParams)} - {"edit"}
    pairs = {name: tuple(params(**BASE | change) for change in pair) for name, pair in PAIRS.items()}
    requests = list(dict.fromkeys(p for pair in pairs.values() for p in pair))
    shared = engine()
    for number, p in enumerate(requests):
        add(shared, str(number), p)
    outcomes = drain(shared)
    latents = {p: latents_of(outcomes[str(number)]) for number, p in enumerate(requests)}
    for name, (first, second) in pairs.items():
        for p in (first, second):
            torch.testing.assert_close(latents[p].double(), reference(p), atol=1e-4, rtol=0, msg=f"{name}")
        is_same_shape = latents[first].shape == latents[second].shape
        assert not is_same_shape or not torch.allclose(latents[first], latents[second], atol=1e-3), name


@pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers, which writes the folder
def test_a_network_that_reads_the_size_gets_that_of_its_image(tmp_path: Path) -> None:
    """PixArt-alpha at two sizes of one area, so that nothing but the size tells the plans apart."""
    write_pixart(tmp_path, "alpha")
    alpha = find_model(str(tmp_path))
    requests = [params(num_steps=2, solver="euler", width=w, height=h) for w, h in ((64, 128), (128, 64))]
    text = TextStates(
        torch.randn(120, 32, generator=torch.Generator().manual_seed(0)),
        torch.arange(120) < 5,
        None,
        TextReport(3, False, ()),
        StageCost(0.0, 0),
    )

    def latents(*numbers: int) -> list[torch.Tensor]:
        alone = build_engine(alpha, max_tokens=10**6, dtype=torch.float32)
        for number in numbers:
            alone.add(str(number), requests[number], text, text)
        outcomes = drain(alone)
        return [latents_of(outcomes[str(number)]) for number in numbers]

    together = latents(0, 1)
    for number in (0, 1):
        assert torch.equal(together[number], latents(number)[0])


def test_the_least_recently_used_plan_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "PLANS_KEPT", 3)
    cache = PlanCache(tiny_runner(), lambda p: plan_request(p, model()))

    def is_cached(num_steps: int) -> bool:
        plan, flops = cache.get(params(num_steps=num_steps))
        assert plan.plan.nfe == num_steps
        assert len(cache._plans) <= 3
        return flops == 0

    assert [is_cached(steps) for steps in (3, 4, 5)] == [False] * 3
    assert is_cached(3)
    assert not is_cached(6)  # in place of 4
    assert is_cached(3) and is_cached(5) and is_cached(6)
    assert not is_cached(4)


@pytest.fixture
def fresh_runner() -> StepRunner:
    """The tiny network with nothing cached."""
    return replace(tiny_runner(), _texts=OrderedDict())


def text_times(step_runner: StepRunner, tiny: ModelInfo) -> Times:
    return step_runner.times(plan_request(params(), tiny), (64, 64))


def test_texts_on_the_device_stay_within_their_bytes(
    fresh_runner: StepRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = text_times(fresh_runner, model())

    def is_new(text: str) -> bool:
        return fresh_runner.row(states(text), times, "plan")[1]

    assert is_new("cat")
    [prepared] = fresh_runner._texts.values()
    assert isinstance(prepared, Text)
    assert prepared.num_bytes == prepared.key_values.nbytes + prepared.mask.nbytes > 0
    monkeypatch.setattr(runner, "TEXT_BYTES", 3 * prepared.num_bytes)
    assert is_new("dog") and is_new("car")
    assert not is_new("cat")
    assert is_new("sun")  # in place of "dog", the least recently used
    assert len(fresh_runner._texts) == 3
    assert not is_new("cat") and not is_new("car")
    assert is_new("dog")
    monkeypatch.setattr(runner, "TEXT_BYTES", 1)
    assert is_new("one text is kept, whatever it takes")
    assert len(fresh_runner._texts) == 1


@pytest.mark.parametrize("change", ["states", "mask", "pooled"])
def test_texts_that_differ_in_one_tensor_are_two(fresh_runner: StepRunner, change: str) -> None:
    times, text = text_times(fresh_runner, model()), replace(states("cat"), pooled=torch.zeros(4))
    value = getattr(text, change)
    other = replace(text, **{change: ~value if value.dtype == torch.bool else value + 1.0})
    assert fresh_runner.row(text, times, "plan")[1]
    assert fresh_runner.row(other, times, "plan")[1]
    assert not fresh_runner.row(text, times, "plan")[1]


def test_rows_of_one_text_under_two_plans_are_two(fresh_runner: StepRunner) -> None:
    times = text_times(fresh_runner, model())
    first, is_new_text, is_new_row = fresh_runner.row(states("cat"), times, "first")
    assert (is_new_text, is_new_row) == (True, True)
    second, is_new_text, is_new_row = fresh_runner.row(states("cat"), times, "second")
    assert (is_new_text, is_new_row) == (False, True)
    assert first is not second
    again, is_new_text, is_new_row = fresh_runner.row(states("cat"), times, "first")
    assert (again is first, is_new_text, is_new_row) == (True, False, False)
