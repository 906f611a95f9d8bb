"""Denoising: the engine's thread, and the calls to it from asyncio."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.params import ONLY_CALLER, Share, UsageAmounts
from safelight.pipeline.scheduling.selection import full_tick_seconds
from safelight.service.errors import BrokenImage, DeadlineExceeded, InvalidRequest, StageFailed, StageLost
from safelight.service.messages import DenoiseResult, RequestContext
from safelight.service.stages import denoise
from safelight.service.stages.denoise import DenoiseStage
from safelight.service.stages.tick_watchdog import MAX_RATIO, TickWatchdog
from safelight.service.usage.events import UsageEvent
from tests.clock import ManualClock
from tests.fakes import USAGE, FakeEngine, make_conditioning, make_params


class EngineFactory:
    """Builds engines and keeps them."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []

    def __call__(self) -> Engine:
        self.engines.append(FakeEngine())
        return cast(Engine, self.engines[-1])


@pytest.fixture
def factory() -> EngineFactory:
    return EngineFactory()


@pytest.fixture
def stage(factory: EngineFactory) -> Iterator[DenoiseStage]:
    stage = DenoiseStage(factory)
    stage.wait()
    yield stage
    stage.close()


def generate(stage: DenoiseStage, **params: Any) -> "asyncio.Future[DenoiseResult]":
    return asyncio.ensure_future(stage.generate(make_conditioning(), make_params(**params)))


async def test_a_result_has_latents_and_usage(stage: DenoiseStage) -> None:
    denoised = await generate(stage)
    assert denoised.latents == "latents"
    assert (denoised.text, denoised.encode, denoised.denoise) == (USAGE.text, USAGE.encode, USAGE.denoise)


async def test_samples_leave_when_their_steps_are_done(stage: DenoiseStage) -> None:
    order: list[int] = []
    samples = [generate(stage, num_steps=steps) for steps in (30, 10, 20)]
    for steps, sample in zip((30, 10, 20), samples, strict=True):

        def record_end(_: object, steps: int = steps) -> None:
            order.append(steps)

        sample.add_done_callback(record_end)
    await asyncio.gather(*samples)
    assert order == [10, 20, 30]


async def test_the_deadline_counts_the_time_in_the_text_encoder(
    factory: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(now=1000.0)
    clock.install(monkeypatch, denoise)
    stage = DenoiseStage(factory, deadline_seconds=100.0)
    stage.wait()
    await generate(stage)
    # the text waited for USAGE.encode.queue_seconds, and was encoded in USAGE.encode.device_seconds
    assert factory.engines[0].times == [(1000.0, 1000.0 + 100.0 - 0.5 - 0.25)]
    stage.close()


async def test_the_engine_knows_whose_an_image_is(stage: DenoiseStage, factory: EngineFactory) -> None:
    share = Share("key_1", 3.0)
    await stage.generate(make_conditioning(), make_params(), RequestContext(share=share))
    await generate(stage)
    assert factory.engines[0].shares == [share, ONLY_CALLER]


async def test_an_expired_sample_is_a_deadline_that_was_exceeded(stage: DenoiseStage) -> None:
    with pytest.raises(DeadlineExceeded):
        await generate(stage, prompt="expire")


@pytest.mark.parametrize(
    ("prompt", "num_events", "num_done"), [("x", 1, 1), ("diverge", 1, 0), ("expire", 1, 0), ("refuse", 0, 0)]
)
async def test_every_sample_is_charged_once_however_it_ends(
    stage: DenoiseStage, prompt: str, num_events: int, num_done: int
) -> None:
    context = RequestContext("record")
    await asyncio.gather(
        stage.generate(make_conditioning(), make_params(prompt=prompt), context), return_exceptions=True
    )
    usage = USAGE.denoise
    event = UsageEvent("record", UsageAmounts(1.75, 0.125, 2000, usage.nfe, usage.rows, usage.tokens))
    assert stage.meter.collect_report("s", 0, stage.status()).events == (event,) * num_events
    assert stage.status().images == num_done


async def test_a_cancelled_sample_is_charged_for_what_it_has_used(stage: DenoiseStage) -> None:
    context = RequestContext("record")
    call = asyncio.ensure_future(stage.generate(make_conditioning(), make_params(num_steps=10**9), context))
    await running(stage, 1)
    call.cancel()
    await asyncio.wait({call})
    [event] = stage.meter.collect_report("s", 0, stage.status()).events
    assert (event.record_id, event.amounts.device_seconds) == ("record", 1.75)


async def test_equal_requests_are_separate_samples(stage: DenoiseStage) -> None:
    assert len(await asyncio.gather(*(generate(stage) for _ in range(5)))) == 5


async def test_a_cancelled_call_returns_after_its_sample_has_left_the_engine(
    stage: DenoiseStage, factory: EngineFactory
) -> None:
    cancelled, other = generate(stage, num_steps=10**9), generate(stage, num_steps=10**9)
    await running(stage, 2)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert factory.engines[0].num_running == 1
    other.cancel()
    await asyncio.wait({other})
    assert factory.engines[0].num_running == 0


async def test_a_call_cancelled_twice_still_removes_its_sample(
    stage: DenoiseStage, factory: EngineFactory
) -> None:
    sample = generate(stage, num_steps=10**9)
    await running(stage, 1)
    factory.engines[0].may_tick.clear()
    sample.cancel()
    await asyncio.sleep(0)
    sample.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sample
    factory.engines[0].may_tick.set()
    await running(stage, 0)


async def test_the_engine_does_not_tick_without_work(stage: DenoiseStage, factory: EngineFactory) -> None:
    for _ in range(2):
        await generate(stage, num_steps=3)
    stage.close()  # an engine that ticked on would have done so until now
    assert stage.status().ticks == 6


async def test_status_and_totals_are_those_of_the_engines_ticks(stage: DenoiseStage) -> None:
    await generate(stage, num_steps=3)
    status, totals, tick = stage.status(), stage.meter.totals, FakeEngine.last_tick
    assert (status.images, status.running, status.waiting) == (1, 0, 0)
    assert (status.ticks, status.rows) == (3, 3 * tick.rows)
    assert (status.attention, status.peak_flops) == (FakeEngine.attention, FakeEngine.peak_flops)
    assert (totals.open, totals.work_left) == (FakeEngine.open_seconds, FakeEngine.work_left)
    assert [data.total for data in (totals.ticks.rows, totals.ticks.tokens)] == [6, 96]
    assert totals.ticks.seconds.total == pytest.approx(3 * tick.seconds)
    assert totals.ticks.forecast.total == pytest.approx(3 * tick.seconds / tick.expected_seconds)


async def test_invalid_parameters_are_the_callers_fault(stage: DenoiseStage) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await generate(stage, prompt="refuse")
    assert refused.value.param == "solver"


@pytest.mark.parametrize("prompt", ["stumble", "diverge"])
async def test_a_failed_sample_does_not_break_its_batch_mates(
    stage: DenoiseStage, factory: EngineFactory, prompt: str
) -> None:
    batch_mate = generate(stage, num_steps=50)
    with pytest.raises(StageFailed):
        await generate(stage, prompt=prompt)
    await batch_mate
    assert len(factory.engines) == 1


async def test_a_failed_tick_fails_its_samples_and_a_new_engine_is_built(
    stage: DenoiseStage, factory: EngineFactory
) -> None:
    batch_mate = generate(stage, num_steps=10**9)
    await running(stage, 1)
    crashing = generate(stage, prompt="crash")
    for sample in (batch_mate, crashing):
        with pytest.raises(StageFailed, match="RuntimeError"):
            await sample
    assert (await generate(stage)).latents == "latents"
    assert len(factory.engines) == 2
    assert stage.meter.totals.lost == FakeEngine.open_seconds
    stage.check()


async def test_a_lost_engine_is_the_loss_of_the_denoiser(stage: DenoiseStage) -> None:
    with pytest.raises(StageLost) as lost:
        await generate(stage, prompt="crash")
    assert lost.value.stage == "denoise"


async def test_a_diverged_sample_has_a_clear_error(stage: DenoiseStage) -> None:
    with pytest.raises(BrokenImage, match="the denoiser left numbers that are not finite"):
        await generate(stage, prompt="diverge")


async def test_an_image_is_drawn_alone_between_those_before_and_after_it(
    stage: DenoiseStage, factory: EngineFactory
) -> None:
    """Although one of those after it has fewer steps."""
    order: list[str] = []

    def start(name: str, steps: int, is_alone: bool = False) -> "asyncio.Task[None]":
        async def draw() -> None:
            context = RequestContext(is_alone=is_alone)
            await stage.generate(make_conditioning(), make_params(num_steps=steps), context)
            order.append(name)

        return asyncio.ensure_future(draw())

    factory.engines[0].may_tick.clear()
    calls = [start("first", 20)]
    calls += [start("alone", 5, is_alone=True), start("short", 1), start("long", 2)]
    await asyncio.sleep(0)
    factory.engines[0].may_tick.set()
    await asyncio.gather(*calls)
    assert order == ["first", "alone", "short", "long"]
    assert factory.engines[0].most_running == 2


async def test_a_call_that_waits_for_its_turn_can_be_cancelled(
    stage: DenoiseStage, factory: EngineFactory
) -> None:
    first = generate(stage, num_steps=10**9)
    await running(stage, 1)
    context = RequestContext(is_alone=True)
    waiting = asyncio.ensure_future(stage.generate(make_conditioning(), make_params(), context))
    behind = generate(stage, num_steps=1)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await behind).latents == "latents"
    first.cancel()
    await asyncio.wait({first})


async def test_calls_that_wait_for_their_turn_fail_with_the_stage(factory: EngineFactory) -> None:
    stage = DenoiseStage(factory)
    first = generate(stage, num_steps=10**9)
    await running(stage, 1)
    context = RequestContext(is_alone=True)
    waiting = asyncio.ensure_future(stage.generate(make_conditioning(), make_params(), context))
    await asyncio.sleep(0)
    stage.close()
    for call in (first, waiting):
        with pytest.raises(StageFailed):
            await call


async def test_a_tick_that_hangs_is_noticed(factory: EngineFactory) -> None:
    limits: list[float] = []
    is_noticed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def notice(limit: float) -> None:
        limits.append(limit)
        loop.call_soon_threadsafe(is_noticed.set)

    watchdog = TickWatchdog(0.05, notice)
    stage = DenoiseStage(factory, watchdog=watchdog)
    stage.wait()
    assert (await generate(stage)).latents == "latents"
    assert limits == []
    factory.engines[0].may_tick.clear()
    hanging = generate(stage, num_steps=3)
    await is_noticed.wait()
    assert limits == [max(0.05, MAX_RATIO * full_tick_seconds(FakeEngine.curve))]
    factory.engines[0].may_tick.set()
    await hanging
    stage.close()


async def test_without_an_engine_every_call_fails_and_the_stage_is_unhealthy() -> None:
    def make() -> Engine:
        raise ValueError("tensor pos_embed is missing")

    stage = DenoiseStage(make)
    with pytest.raises(ValueError, match="pos_embed"):
        stage.wait()
    with pytest.raises(StageFailed):
        await generate(stage)
    with pytest.raises(ValueError, match="pos_embed"):
        stage.check()
    stage.close()


async def test_closing_a_stage_fails_its_calls(factory: EngineFactory) -> None:
    stage = DenoiseStage(factory)
    sample = generate(stage, num_steps=10**9)
    await running(stage, 1)
    stage.close()
    with pytest.raises(StageFailed):
        await sample
    with pytest.raises(StageFailed):
        await generate(stage)


def test_a_closed_event_loop_does_not_break_the_engine(stage: DenoiseStage) -> None:
    async def abandon_a_call() -> None:
        generate(stage, num_steps=10**9)
        await running(stage, 1)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon_a_call())
    loop.close()
    assert asyncio.run(stage.generate(make_conditioning(), make_params())).latents == "latents"


async def running(stage: DenoiseStage, num: int) -> None:
    while stage.status().running != num:
        await asyncio.sleep(0)
