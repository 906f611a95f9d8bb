"""Text encoding: each text is encoded once, and only the first image with it pays."""

from collections.abc import Iterator
from typing import cast

import pytest

from safelight.pipeline.engine.text_encoder import TextEncoder
from safelight.pipeline.params import UsageAmounts
from safelight.service.messages import RequestContext
from safelight.service.stages import batched_stage
from safelight.service.stages.encode import EncodeJob, EncodeStage
from safelight.service.usage.events import UsageEvent
from tests.clock import ManualClock
from tests.fakes import FakeStates, FakeTextEncoder, make_params


def text_of(states: object) -> str:
    """The text that `FakeTextEncoder` encoded as `states`."""
    assert isinstance(states, FakeStates)
    return states.text


@pytest.fixture
def encoder() -> FakeTextEncoder:
    return FakeTextEncoder()


@pytest.fixture
def stage(encoder: FakeTextEncoder) -> Iterator[EncodeStage]:
    stage = EncodeStage(lambda: cast(TextEncoder, encoder), "m", cache_bytes=30)
    yield stage
    stage.close()


async def test_guidance_encodes_the_negative_prompt_too(stage: EncodeStage) -> None:
    answer = await stage.encode(make_params(prompt="a cat", negative_prompt="blue blorp", guidance_scale=4.0))
    assert (text_of(answer.cond), text_of(answer.uncond)) == ("a cat", "blue blorp")
    assert (answer.text.num_tokens, answer.text.unknown_words) == (4, ("blorp",))
    marked = await stage.encode(make_params(prompt="cat --fast", negative_prompt="--no dog --fast"))
    assert marked.text.prompt_syntax == ("--fast", "--no")
    assert (answer.cost.device_seconds, answer.cost.flops) == (2.0, 20)


async def test_without_guidance_the_negative_prompt_is_not_encoded(
    stage: EncodeStage, encoder: FakeTextEncoder
) -> None:
    answer = await stage.encode(make_params(prompt="a cat", negative_prompt="dog", guidance_scale=1.0))
    assert answer.uncond is None
    assert encoder.batches == [["a cat"]]


async def test_a_cached_text_is_free(stage: EncodeStage, encoder: FakeTextEncoder) -> None:
    first = await stage.encode(make_params(prompt="a cat"))
    again = await stage.encode(make_params(prompt="a cat"))
    assert encoder.batches == [["a cat", ""]]
    assert (again.cond, again.uncond) == (first.cond, first.uncond)
    assert again.cost.flops == again.cost.device_seconds == 0
    curve = stage.status().curve
    assert curve is not None and curve.seconds_for(10) == pytest.approx(1.0)
    assert (stage.status().cache_hits, stage.status().cache_misses, stage.status().images) == (2, 2, 2)


async def test_images_of_one_batch_share_their_texts(
    stage: EncodeStage, encoder: FakeTextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ManualClock(now=10.0).install(monkeypatch, batched_stage)
    jobs = [
        EncodeJob(make_params(prompt=prompt), RequestContext(f"record {k}"), arrived=9.0 - k)
        for k, prompt in enumerate(("a", "a", "b", "c", "d"))
    ]
    answers = await stage.run_batch(jobs)
    # each job is charged once, and as much as its result says
    assert stage.meter.collect_report("s", 0, stage.status()).events == tuple(
        UsageEvent(f"record {k}", UsageAmounts(cost.device_seconds, 1.0 + k, cost.flops))
        for k, cost in enumerate(answer.cost for answer in answers)
    )
    assert encoder.batches == [["a", ""], ["b", "c"], ["d"]]
    assert [text_of(answer.cond) for answer in answers] == ["a", "a", "b", "c", "d"]
    assert [answer.cost.flops for answer in answers] == [20, 0, 10, 10, 10]


async def test_the_least_recently_used_text_is_dropped(stage: EncodeStage, encoder: FakeTextEncoder) -> None:
    for prompt in ("a", "b", "a", "c", "a", "b"):
        await stage.encode(make_params(prompt=prompt))
    assert [text for batch in encoder.batches for text in batch] == ["a", "", "b", "c", "b"]


async def test_the_cache_stays_as_full_as_it_may_be(stage: EncodeStage, encoder: FakeTextEncoder) -> None:
    """Three texts fit. When a fourth has come, each of the last three is still there."""
    for prompt in ("a", "b", "c", "d", "b", "c", "d", "b", "c", "d"):
        await stage.encode(make_params(prompt=prompt, guidance_scale=1.0))
    assert encoder.batches == [["a"], ["b"], ["c"], ["d"]]


async def test_a_cache_of_no_bytes_keeps_nothing(encoder: FakeTextEncoder) -> None:
    stage = EncodeStage(lambda: cast(TextEncoder, encoder), "m", cache_bytes=0)
    for _ in range(2):
        await stage.encode(make_params(prompt="a", guidance_scale=1.0))
    assert encoder.batches == [["a"], ["a"]]
    assert (stage.status().cache_hits, stage.status().cache_misses) == (0, 2)
    stage.close()


async def test_a_truncated_text_is_reported(stage: EncodeStage) -> None:
    long = "one two three four five six"
    for prompt, negative_prompt, is_cut in ((long, "", True), ("one", long, True), ("one", "two", False)):
        answer = await stage.encode(make_params(prompt=prompt, negative_prompt=negative_prompt))
        assert answer.text.truncated == is_cut


async def test_an_encoder_that_cannot_be_loaded_raises_its_error() -> None:
    def make() -> TextEncoder:
        raise ValueError("tensor text.positional_embedding is missing")

    stage = EncodeStage(make, "m", cache_bytes=30)
    with pytest.raises(ValueError, match="positional_embedding"):
        stage.wait()
    with pytest.raises(ValueError, match="positional_embedding"):
        await stage.encode(make_params())
    stage.close()
