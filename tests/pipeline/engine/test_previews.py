"""Previews: which ticks have one, that it is the data that the reference predicts there, and its budget."""

from itertools import pairwise
from typing import Any, cast

import pytest
import torch

from safelight.pipeline.diffusion.reference import x0_from
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import ALIASES, SERVED, SOLVERS, canonical_name, make_plan
from safelight.pipeline.engine import previews
from safelight.pipeline.engine.previews import ALONE_SHARE, SHARED_SHARE, Estimate, preview_ticks
from safelight.pipeline.params import NO_PREVIEWS, PreviewRequest
from tests.pipeline.parts import add, drain, engine, latents_of, model, params, previews_alone
from tests.pipeline.reference_loop import reference

CASES: list[tuple[Schedule, str]] = [
    (Flow(3.0), "flow"),
    (VariancePreserving("scaled_linear"), "epsilon"),
    (VariancePreserving("cosine"), "v_prediction"),
    (VarianceExploding(0.02, 30.0), "sample"),
]


@pytest.mark.parametrize("solver", [name for name in SERVED if name not in ALIASES])
@pytest.mark.parametrize(("schedule", "prediction"), CASES, ids=str)
def test_a_plan_reads_the_data_from_every_output(solver: str, schedule: Schedule, prediction: str) -> None:
    """Also where the solver itself works with the noise."""
    if schedule.family not in SOLVERS[canonical_name(solver)].families:
        return
    plan = make_plan(solver, schedule, prediction, 6)
    generator = torch.Generator().manual_seed(0)
    assert len(plan.data) == len(plan.ticks)
    for tick, (p, q) in zip(plan.ticks, plan.data, strict=True):
        x, out = torch.randn(2, 4, dtype=torch.float64, generator=generator)
        expected = x0_from(prediction, out, x, *schedule.alpha_sigma(tick.t))
        torch.testing.assert_close(p * x + q * out, expected)


@pytest.mark.parametrize(
    "changes",
    [
        *({"solver": solver} for solver in model().solvers if solver not in ALIASES),
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"guidance_interval": (0.3, 0.8)},
        {"guidance_stride": 2, "guidance_rescale": 0.7},
        {"solver": "ddim", "eta": 0.5},
        {"timestep_spacing": "karras", "width": 96},
    ],
    ids=str,
)
def test_previews_are_the_data_that_the_reference_predicts(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every tick but the last."""
    monkeypatch.setattr(previews, "FIRST_SHARE", 0.0)
    p = params(**({"num_steps": 5, "seed": 3, "negative_prompt": "blue"} | changes))
    expected: list[torch.Tensor] = []
    reference(p, expected)
    taken = previews_alone(p, PreviewRequest(count=100))
    assert [preview.index for preview in taken] == list(range(len(expected) - 1))
    for preview in taken:
        assert preview.latents.dtype == torch.float32
        torch.testing.assert_close(preview.latents.double(), expected[preview.index], atol=1e-4, rtol=0)


def test_a_preview_is_taken_once_and_stays_as_it_was() -> None:
    """Its tensor is not a view of the batch's buffers, which the next tick overwrites."""
    shared = engine()
    add(shared, "a", params(num_steps=6), PreviewRequest(1))
    add(shared, "b", params(num_steps=6, seed=2))
    for _ in range(3):
        shared.step()
    [preview] = shared.take_previews()
    assert (preview.request_id, preview.index) == ("a", 0)
    before = preview.latents.clone()
    outcomes = drain(shared)
    assert torch.equal(preview.latents, before)
    assert not torch.equal(before, latents_of(outcomes["a"]))
    assert shared.take_previews() == []


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("num_ticks", [4, 5, 8, 13, 20, 50])
def test_previews_are_spread_evenly_and_the_first_is_early(num_ticks: int, count: int) -> None:
    ticks = preview_ticks([2.0] * num_ticks, PreviewRequest(count))
    assert list(ticks.values()) == list(range(min(count, num_ticks - 1)))
    assert 1 <= min(ticks) <= 0.25 * num_ticks
    assert max(ticks) < num_ticks
    gaps = [later - earlier for earlier, later in pairwise((*ticks, num_ticks))]
    assert max(gaps) - min(gaps) <= 2


def test_the_spread_is_of_work_and_not_of_ticks() -> None:
    """Of 20 ticks whose second half has two rows."""
    assert preview_ticks([1.0] * 10 + [2.0] * 10, PreviewRequest(2)) == {6: 0, 14: 1}


def test_a_sample_of_few_ticks_has_fewer_previews_and_never_one_of_its_last_tick() -> None:
    assert preview_ticks([1.0], PreviewRequest(3)) == {}
    assert preview_ticks([1.0, 1.0], PreviewRequest(3)) == {1: 0}
    assert preview_ticks([1.0] * 3, PreviewRequest(3)) == {1: 0, 2: 1}
    assert preview_ticks([1.0] * 20, NO_PREVIEWS) == {}


def test_a_sample_that_is_drawn_again_has_only_the_later_previews() -> None:
    whole = preview_ticks([1.0] * 20, PreviewRequest(3))
    assert whole == {4: 0, 9: 1, 15: 2}
    assert preview_ticks([1.0] * 20, PreviewRequest(3, first=1)) == {9: 1, 15: 2}
    assert preview_ticks([1.0] * 20, PreviewRequest(3, first=3)) == {}


def test_a_budget_is_a_share_of_the_samples_whole_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ticks of four it has done a third of its work, in 3 s: 9 s in all."""
    shared = engine()
    add(shared, "a", params(num_steps=4))
    shared.step()
    [sample] = shared._running.values()
    sample.device_seconds = 3.0
    sample.step_index = 2
    sample.workload = cast(Any, _Work([1.0, 1.0, 2.0, 2.0]))
    estimate = Estimate(sample, 2, 0, sample.x)
    assert estimate.preview(is_alone=True).budget_seconds == pytest.approx(9.0 * ALONE_SHARE)
    assert estimate.preview(is_alone=False).budget_seconds == pytest.approx(9.0 * SHARED_SHARE)


class _Work:
    def __init__(self, work: list[float]) -> None:
        self.work = work


@pytest.mark.parametrize(("others", "is_alone"), [(0, True), (1, False)])
def test_a_sample_is_alone_if_no_other_runs_or_waits(
    monkeypatch: pytest.MonkeyPatch, others: int, is_alone: bool
) -> None:
    answers: list[bool] = []
    preview = Estimate.preview

    def record(self: Estimate, is_alone: bool) -> previews.SamplePreview:
        answers.append(is_alone)
        return preview(self, is_alone)

    monkeypatch.setattr(Estimate, "preview", record)
    shared = engine(max_rows=2)  # one sample runs, and the other waits
    add(shared, "a", params(num_steps=4), PreviewRequest(1))
    for seed in range(others):
        add(shared, f"other {seed}", params(num_steps=9, seed=seed))
    drain(shared)
    assert answers == [is_alone]


def test_a_sample_without_previews_makes_none() -> None:
    shared = engine()
    add(shared, "a", params())
    drain(shared)
    assert shared.take_previews() == []
