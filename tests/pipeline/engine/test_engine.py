"""The engine against the reference loop and against itself alone, with samples that join, leave and abort."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.diffusion.solvers import ALIASES
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.metering import TickRecord
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.denoiser import text_flops, times_flops
from safelight.pipeline.params import FinishReason, GenerationParams, PreviewRequest
from tests.pipeline.parts import (
    add,
    alone,
    drain,
    engine,
    engine_on_used_network,
    latents_of,
    model,
    params,
    previews_alone,
    states,
)
from tests.pipeline.reference_loop import reference


def last_tick(engine: Engine) -> TickRecord:
    assert engine.last_tick is not None
    return engine.last_tick


LONG_PROMPT = "a very long prompt about a green car on a blue road, with many more words than sixteen"


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 4.5])
@pytest.mark.parametrize("solver", [s for s in model().solvers if s not in ALIASES])
def test_engine_equals_reference(solver: str, guidance_scale: float) -> None:
    p = params(solver=solver, guidance_scale=guidance_scale, num_steps=7, seed=3, negative_prompt="blue")
    torch.testing.assert_close(alone(p).double(), reference(p), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changed",
    [
        {"timestep_spacing": "karras"},
        {"solver": "ddim", "eta": 0.5},
        {"guidance_interval": (0.3, 0.8)},
        {"guidance_interval": (0.3, 0.8), "guidance_scale": 0.0},
        {"guidance_rescale": 0.7},
        {"guidance_stride": 2},
        {"guidance_stride": 3, "guidance_interval": (0.3, 0.8), "guidance_rescale": 0.7},
        {"guidance_stride": 2, "solver": "heun"},
        {"width": 96, "height": 64},
        {"width": 48, "height": 80, "prompt": LONG_PROMPT},
        {
            "guidance_interval": (0.3, 0.8),
            "guidance_rescale": 1.0,
            "solver": "heun",
            "timestep_spacing": "uniform_lam",
        },
    ],
    ids=str,
)
def test_every_option_equals_reference(changed: dict[str, Any]) -> None:
    p = params(**({"num_steps": 7, "seed": 3, "negative_prompt": "blue"} | changed))
    torch.testing.assert_close(alone(p).double(), reference(p), atol=1e-4, rtol=0)
    if "width" not in changed:
        assert not torch.allclose(
            alone(p), alone(params(num_steps=7, seed=3, negative_prompt="blue")), atol=1e-3
        )


def with_possible_eta(p: GenerationParams) -> GenerationParams:
    """`p` as a request may have it: only DDIM has an eta."""
    return p if p.solver == "ddim" else replace(p, eta=0.0)


REQUESTS = st.builds(
    params,
    num_steps=st.integers(3, 9),  # plms needs three on a flow
    guidance_scale=st.sampled_from([0.0, 1.0, 2.5, 8.0]),
    solver=st.one_of(st.just("ddim"), st.sampled_from(model().solvers)),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    timestep_spacing=st.sampled_from(["trailing", "karras", "quadratic"]),
    guidance_interval=st.sampled_from([(0.0, 1.0), (0.3, 0.8)]),
    guidance_stride=st.sampled_from([1, 2, 5]),
    guidance_rescale=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**53 - 1),
    image_index=st.integers(0, 9),
    prompt=st.sampled_from(["a red apple", "cat", "a very long prompt about a green car on a blue road"]),
    negative_prompt=st.sampled_from(["", "blurry"]),
    width=st.sampled_from([64, 64, 96, 48]),
    height=st.sampled_from([64, 64, 96, 80]),
).map(with_possible_eta)


PREVIEW_REQUESTS = st.builds(PreviewRequest, st.integers(0, 3), st.sampled_from([0, 0, 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
# Without shrinking, which would take minutes to tell nothing more.
@settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(data=st.data())
def test_batch_mates_never_change_a_bit(dtype: torch.dtype, data: st.DataObject) -> None:
    """Of any of the requests, wherever it stands in the order of arrival; and neither do previews."""
    arrivals = data.draw(
        st.lists(st.tuples(REQUESTS, st.integers(0, 6), PREVIEW_REQUESTS), min_size=2, max_size=7)
    )
    busy = engine_on_used_network(max_rows=data.draw(st.integers(2, 16)), dtype=dtype)
    outcomes: dict[str, SampleOutcome] = {}
    for number, (request, ticks, previews) in enumerate(arrivals):
        add(busy, str(number), request, previews)
        for _ in range(ticks):
            outcomes |= {outcome.request_id: outcome for outcome in (busy.step() if busy.has_work else ())}
    outcomes |= drain(busy)
    all_previews = busy.take_previews()
    for number, (request, _, previews) in enumerate(arrivals):
        assert torch.equal(latents_of(outcomes[str(number)]), alone(request, dtype)), request
        batched = [preview for preview in all_previews if preview.request_id == str(number)]
        single = previews_alone(request, previews, dtype)
        assert [preview.index for preview in batched] == [preview.index for preview in single]
        for ours, theirs in zip(batched, single, strict=True):
            assert torch.equal(ours.latents, theirs.latents), (request, ours.index)


def test_samples_leave_after_their_own_last_tick() -> None:
    shared = engine()
    for steps in (2, 5, 3):
        add(shared, str(steps), params(num_steps=steps))
    left_at = {o.request_id: tick for tick in range(1, 6) for o in shared.step()}
    assert left_at == {"2": 2, "3": 3, "5": 5}
    assert not shared.has_work


def test_a_new_sample_joins_at_the_next_tick() -> None:
    shared = engine()
    add(shared, "long", params(num_steps=9))
    shared.step()
    add(shared, "short", params(num_steps=2, solver="euler", guidance_scale=1.0))
    shared.step()
    assert shared.last_tick is not None
    assert shared.last_tick.rows == 3
    assert [o.request_id for o in shared.step()] == ["short"]


def test_rows_are_limited_and_filled_with_what_fits() -> None:
    shared = engine(max_rows=3)
    for name, guidance in (("a", 4.0), ("b", 4.0), ("c", 1.0)):
        add(shared, name, params(guidance_scale=guidance, num_steps=2))
    rows = []
    while shared.has_work:
        shared.step()
        rows.append(last_tick(shared).rows)
    assert rows == [3, 3, 2, 2]


def test_rows_that_guidance_frees_are_refilled_in_the_same_tick() -> None:
    shared = engine(max_rows=3)
    # t = 1, 7/8, 6/8, 5/8 are guided
    add(shared, "early", params(num_steps=8, solver="euler", guidance_interval=(0.6, 1.0)))
    add(shared, "next", params(num_steps=30))
    rows = []
    for _ in range(5):
        shared.step()
        rows.append(last_tick(shared).rows)
    assert rows == [2, 2, 2, 2, 3]
    early = drain(shared)["early"].usage
    assert (early.ticks, early.rows) == (8, 12)


def test_rows_that_a_reused_difference_frees_are_refilled() -> None:
    shared = engine(max_rows=3)
    add(shared, "strides", params(num_steps=6, guidance_stride=3))  # ticks 0 and 3 have two rows
    add(shared, "next", params(num_steps=30))
    rows: list[int] = []
    outcomes: list[SampleOutcome] = []
    while not outcomes:
        outcomes = shared.step()
        rows.append(last_tick(shared).rows)
    assert rows == [2, 3, 3, 2, 3, 3]
    assert (outcomes[0].request_id, outcomes[0].usage.rows) == ("strides", 8)


def test_rows_that_guidance_needs_later_are_used_until_then() -> None:
    shared = engine(max_rows=2)
    # Only the last step is guided.
    add(shared, "late", params(num_steps=4, solver="euler", guidance_interval=(0.0, 0.3)))
    add(shared, "beside", params(guidance_scale=1.0, num_steps=3, solver="euler"))
    rows = []
    while shared.has_work:
        shared.step()
        rows.append(last_tick(shared).rows)
    assert rows == [2, 2, 2, 2]


def test_a_short_request_overtakes_a_long_one_that_keeps_its_state() -> None:
    shared = engine(max_rows=2)
    long = params(num_steps=30, seed=5)
    add(shared, "long", long)
    shared.step()
    add(shared, "short", params(num_steps=2, solver="euler"))
    outcomes = drain(shared)
    assert list(outcomes) == ["short", "long"]
    assert outcomes["long"].usage.ticks == 30
    assert torch.equal(latents_of(outcomes["long"]), alone(long, torch.float32))


def test_tokens_of_a_tick_are_limited() -> None:
    shared = build_engine(model(), max_tokens=80, dtype=torch.float32)  # a row at 64x64 has 16
    for seed in range(9):
        add(shared, str(seed), params(seed=seed, guidance_scale=1.0))
    add(shared, "large", params(width=128, height=128, guidance_scale=1.0))  # a row of 64
    tokens = []
    while shared.has_work:
        shared.step()
        tokens.append(last_tick(shared).tokens)
    assert max(tokens) == 80
    with pytest.raises(InvalidParams, match="128x128 takes 128 tokens in a tick, and this engine at most 80"):
        add(shared, "larger", params(width=128, height=128))


def test_a_sample_leaves_at_its_deadline_waiting_or_running(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = itertools.count()  # a clock that advances by a millisecond at every reading
    monkeypatch.setattr(
        "safelight.pipeline.engine.engine.time", SimpleNamespace(perf_counter=lambda: 0.001 * next(ticking))
    )
    shared = engine(max_rows=2)
    text = states("cat")
    shared.add("under way", params(num_steps=200), text, text, deadline=0.2)
    shared.step()
    shared.add("waiting", params(num_steps=200), text, text, deadline=0.1)
    shared.add("has time", params(num_steps=3), text, text, deadline=1e3)
    outcomes = drain(shared)
    assert outcomes["has time"].reason is FinishReason.DONE
    assert outcomes["waiting"].reason is outcomes["under way"].reason is FinishReason.EXPIRED
    assert 1 <= outcomes["under way"].usage.ticks < 200 and outcomes["waiting"].usage.ticks == 0
    seconds = {name: outcome.usage.cost.device_seconds for name, outcome in outcomes.items()}
    assert seconds["under way"] > seconds["waiting"]


def test_a_sample_that_is_passed_over_does_not_keep_its_last_batch_in_memory() -> None:
    shared = engine(max_rows=4)
    for name in ("a", "b"):
        add(shared, name, params(num_steps=40))
    shared.step()
    for name in ("c", "d"):
        add(shared, name, params(num_steps=2, solver="euler"))
    shared.step()
    for name in ("a", "b"):
        state = shared._running[name].state
        assert state.untyped_storage().nbytes() == state.nbytes
    assert all(outcome.reason is FinishReason.DONE for outcome in drain(shared).values())


def test_samples_with_one_text_and_plan_share_their_rows() -> None:
    shared = engine()
    for name in ("first", "second"):
        add(shared, name, params(num_steps=5))
    add(shared, "other plan", params(num_steps=6))
    shared.step()
    first, second, other = (shared._running[name] for name in ("first", "second", "other plan"))
    assert first.cond is second.cond
    assert first.uncond is second.uncond
    assert first.cond is not other.cond


def test_waiting_samples_do_not_all_occupy_the_device() -> None:
    shared = engine(max_rows=2)
    for seed in range(9):
        add(
            shared, str(seed), params(seed=seed, num_steps=30 - 3 * seed)
        )  # each more urgent than those before
        shared.step()
    assert shared.num_running <= 4
    assert len(drain(shared)) == 9


def test_abort_frees_the_rows_at_the_next_tick() -> None:
    shared = engine()
    add(shared, "gone", params(num_steps=50))
    add(shared, "stays", params(num_steps=3))
    shared.step()
    shared.abort("gone")
    shared.abort("gone")
    outcomes = {o.request_id: o for o in shared.step()}
    assert outcomes["gone"].reason is FinishReason.ABORTED
    assert outcomes["gone"].latents is None
    assert outcomes["gone"].usage.nfe == 1
    assert shared.last_tick is not None
    assert shared.last_tick.rows == 2
    assert drain(shared)["stays"].reason is FinishReason.DONE


def test_usage_counts_ticks_rows_and_tokens() -> None:
    shared = engine()
    add(shared, "heun", params(solver="heun", num_steps=5))
    add(shared, "plain", params(guidance_scale=1.0, num_steps=4))
    out = drain(shared)
    # Heun: the last step is an Euler step, each of the others takes two evaluations
    assert (out["heun"].usage.nfe, out["heun"].usage.rows) == (9, 18)
    assert (out["plain"].usage.nfe, out["plain"].usage.rows) == (4, 4)
    assert out["plain"].usage.tokens == 4 * 16
    assert out["heun"].usage.cost.flops > 3.5 * out["plain"].usage.cost.flops
    assert out["plain"].usage.cost.device_seconds > 0


def test_a_text_is_prepared_once_and_charged_to_its_first_sample() -> None:
    shared = engine()
    for name, prompt in (("first", "a red apple"), ("again", "a red apple"), ("other", "cat")):
        add(shared, name, params(prompt=prompt, num_steps=2))
    out = {name: outcome.usage.cost.flops for name, outcome in drain(shared).items()}
    per_text = text_flops(shared._runner.network.config, 16)
    assert out["other"] - out["again"] == per_text
    assert out["first"] - out["again"] == 2 * per_text + times_flops(shared._runner.network.config, 2)


@pytest.mark.parametrize("is_whole", [True, False], ids=["all", "one number"])
def test_a_diverged_sample_fails_alone(is_whole: bool) -> None:
    shared = engine()
    add(shared, "bad", params(num_steps=2))
    add(shared, "good", params(num_steps=2))
    shared.step()
    bad = next(iter(shared._running.values()))
    diverged = bad.state.clone()
    (diverged if is_whole else diverged.flatten()[:1]).fill_(float("nan"))
    bad.state = diverged
    outcomes = drain(shared)
    assert outcomes["bad"].reason is FinishReason.DIVERGED
    assert "not finite" in (outcomes["bad"].error or "")
    assert torch.equal(latents_of(outcomes["good"]), alone(params(num_steps=2)))


def test_the_seconds_in_the_queue_end_with_the_first_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, readings = SimpleNamespace(now=100.0), itertools.count()
    monkeypatch.setattr(  # a microsecond at every reading, so that a tick takes time
        "safelight.pipeline.engine.engine.time",
        SimpleNamespace(perf_counter=lambda: clock.now + 1e-6 * next(readings)),
    )
    shared, text = engine(max_rows=2), states("cat")
    for name, arrived in (("first", 97.5), ("second", None), ("aborted", 99.0)):
        shared.add(name, params(num_steps=2, solver="euler"), text, text, arrived=arrived)
    outcomes: dict[str, SampleOutcome] = {}
    for _ in range(4):
        clock.now += 10.0
        outcomes |= {outcome.request_id: outcome for outcome in shared.step()}
        if clock.now == 120.0:
            shared.abort("aborted")
    seconds = {name: outcome.usage.cost.queue_seconds for name, outcome in outcomes.items()}
    assert seconds == pytest.approx({"first": 12.5, "second": 30.0, "aborted": 21.0}, abs=1e-3)


def test_a_duplicate_id_is_refused() -> None:
    shared = engine()
    add(shared, "same", params())
    with pytest.raises(ValueError, match="already"):
        add(shared, "same", params())


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(InvalidParams, match="magic") as caught:
        add(engine(), "x", params(solver="magic"))
    assert caught.value.param == "solver"


def test_a_limit_below_one_image_is_refused_at_the_start() -> None:
    with pytest.raises(
        ValueError, match="max_tokens must be at least 32, for a guided image of 64x64; got 31"
    ):
        build_engine(model(), max_tokens=31)
