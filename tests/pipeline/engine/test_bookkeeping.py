"""What the engine says of its samples while they are in it, and what it keeps of those that left."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.diffusion import noise
from safelight.pipeline.engine import activation, device_clock
from safelight.pipeline.engine import engine as engine_module
from safelight.pipeline.engine.admission import Admission
from safelight.pipeline.engine.runner import StepRunner, padded_length
from safelight.pipeline.engine.sample import QueuedSample, RunningSample, start_state
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import FinishReason
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.pipeline.parts import add, drain, engine, model, params, states


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock on which every look takes a second."""
    clock = count(1.0)
    for module in (engine_module, device_clock):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    yield


def test_open_and_remaining_seconds_are_those_of_all_samples(seconds: None) -> None:
    """Two samples of which one runs: admission takes a second each, and so does the start."""
    shared = engine(max_rows=2).calibrated(CostCurve((1e9,), (1.0,)))
    for name in ("runs", "waits"):
        add(shared, name, params(num_steps=4, solver="euler"))
    work = forward_flops(shared.config, 8, 8, 16) * 2 / 1e9  # seconds of a tick
    assert shared.open_seconds == 2.0
    assert shared.work_left == pytest.approx(8 * work)
    shared.step()
    assert (shared.num_running, shared.num_waiting) == (1, 1)
    assert shared.open_seconds > 3.0  # and the tick
    assert shared.work_left == pytest.approx(shared.curve.slowdown * 7 * work)
    shared.abort_all()
    assert {outcome.reason for outcome in shared.step()} == {FinishReason.ABORTED}
    assert (shared.open_seconds, shared.work_left, shared.has_work) == (0.0, 0.0, False)


def test_a_sample_that_cannot_begin_leaves_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = engine()
    start = shared._start

    def fail_one(queued: QueuedSample) -> RunningSample:
        if queued.request_id == "bad":
            raise MemoryError("no room for its rows")
        return start(queued)

    monkeypatch.setattr(shared, "_start", fail_one)
    for name in ("bad", "good"):
        add(shared, name, params(num_steps=2))
    outcomes = drain(shared)
    assert (outcomes["bad"].reason, outcomes["good"].reason) == (FinishReason.FAILED, FinishReason.DONE)
    assert outcomes["bad"].error == "the sample could not begin: no room for its rows"
    assert outcomes["bad"].latents is None and shared.num_waiting == 0


def test_a_sample_that_left_keeps_nothing_of_its_batch() -> None:
    shared = engine()
    for name in ("one", "two"):
        add(shared, name, params(num_steps=1))
    for outcome in drain(shared).values():
        assert outcome.latents is not None
        assert outcome.latents.untyped_storage().nbytes() == outcome.latents.nbytes
    assert shared._layout is None


def test_the_rows_of_a_text_and_plan_are_charged_to_their_first_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In families whose rows depend on the times; the tiny model's are free."""
    add(free := engine(), "x", params(num_steps=2))
    without = drain(free)["x"].usage.cost.flops
    monkeypatch.setattr(activation, "row_flops", lambda config, text_tokens, nfe: 1000 * nfe)
    shared = engine()
    for name in ("first", "again"):
        add(shared, name, params(num_steps=2))
    flops = {name: outcome.usage.cost.flops for name, outcome in drain(shared).items()}
    assert flops["first"] == without + 2 * 2000  # of its two texts
    add(free, "y", params(num_steps=2))
    monkeypatch.setattr(activation, "row_flops", lambda config, text_tokens, nfe: 0)
    assert flops["again"] == drain(free)["y"].usage.cost.flops


@pytest.mark.parametrize("max_tokens", [31, 32])
def test_a_tick_must_hold_the_rows_that_a_sample_has_at_its_widest(max_tokens: int) -> None:
    """Guidance begins after the first ticks; 16 tokens a row."""
    shared = engine()
    admission = Admission(shared._admission.plans, shared.config, 8, Limits(16, max_tokens))
    late = params(guidance_interval=(0.0, 0.5))

    def admit() -> QueuedSample:
        return admission.admit("x", late, states("a"), states(""), shared.curve, 0.0, 1.0)

    if max_tokens < 32:
        with pytest.raises(
            InvalidParams, match="64x64 takes 32 tokens in a tick, and this engine at most 31"
        ):
            admit()
    else:
        workload = admit().workload
        row = forward_flops(shared.config, 8, 8, 16)
        assert (workload.rows[0], workload.rows[-1], workload.tokens) == (1, 2, 16)
        assert (workload.work[0], workload.work[-1]) == (row, 2 * row)


def test_a_sample_starts_from_scaled_noise_of_its_seed_and_image() -> None:
    plan = replace(plan_request(params(), model()), start_scale=2.0)
    state = start_state(params(seed=3, image_index=5), plan, (4, 8, 6), torch.device("cpu"))
    assert torch.equal(state[0], 2.0 * noise.draw(3, 5, noise.START, (4, 8, 6)))
    assert state.shape == (5, 4, 8, 6) and not state[1:].any()


def test_a_tick_leaves_the_number_of_threads() -> None:
    """Fewer samples than threads are updated by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        add(shared := engine(), "x", params(num_steps=1))
        drain(shared)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_learned_variance_is_dropped() -> None:
    """The network gives twice the channels of a latent; the second half is the variance."""
    output = torch.arange(8.0).view(1, 4, 1, 2)
    network: Any = SimpleNamespace(
        config=SimpleNamespace(in_channels=2), predict=lambda latents, rows, steps: [output]
    )
    layout: Any = SimpleNamespace(
        groups=[SimpleNamespace(row_sample=torch.tensor([0]))], rows=None, steps=(0,)
    )
    buffers: Any = [SimpleNamespace(x=torch.zeros(1, 2, 1, 2))]
    [prediction] = StepRunner(network, torch.float32, torch.device("cpu")).forward(layout, buffers)
    assert torch.equal(prediction, output[:, :2])


class FakeRow:
    """What a network makes of a text; may be referred to weakly."""


@pytest.mark.parametrize(
    ("pooled", "dtype"), [(torch.tensor([999]), torch.int64), (torch.tensor([0.1]), torch.bfloat16)]
)
def test_class_labels_stay_whole_numbers(pooled: torch.Tensor, dtype: torch.dtype) -> None:
    """bfloat16 would round 999 to 1000."""
    prepared: list[torch.Tensor] = []

    def prepare_text(states: torch.Tensor, mask: torch.Tensor, pooled: torch.Tensor) -> object:
        prepared.append(pooled)
        return SimpleNamespace(num_bytes=1)

    network: Any = SimpleNamespace(prepare_text=prepare_text, prepare_row=lambda text, times: FakeRow())
    runner = StepRunner(network, torch.bfloat16, torch.device("cpu"))
    runner.row(replace(states("a"), pooled=pooled), None, "plan")
    assert prepared[0].dtype == dtype
    assert torch.equal(prepared[0], pooled.to(dtype))


@pytest.mark.parametrize(
    ("last", "length"), [(None, 16), (0, 16), (15, 16), (16, 32), (31, 32), (32, 64), (64, 77), (76, 77)]
)
def test_a_text_is_cut_after_its_last_token(last: int | None, length: int) -> None:
    """To 16, 32, 64, ... tokens, or all; what is masked before the last token does not matter."""
    mask = torch.zeros(77, dtype=torch.bool)
    if last is not None:
        mask[last] = True
    assert padded_length(mask) == length


def test_latents_have_the_images_height_and_width() -> None:
    admission = engine()._admission
    assert admission.latent_size(width=96, height=64) == (8, 12)
    assert admission.row_flops(96, 64) == forward_flops(engine().config, 8, 12, 0)


def test_a_guided_sample_needs_the_states_of_its_negative_prompt() -> None:
    empty = engine()
    with pytest.raises(ValueError, match="needs the states of its negative prompt"):
        empty.add("guided", params(guidance_scale=4.0), states("a red apple"), None)
    assert empty.num_waiting == 0
