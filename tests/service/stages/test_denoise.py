"""Denoising: the engine's thread, and the bridge to it."""

import asyncio
from collections.abc import Iterator

import pytest

from safelight.service.errors import InvalidRequest, StageFailed
from safelight.service.stages.denoise import DenoiseStage
from tests.fakes import USAGE, FakeEngine, make_conditioning, make_params


class Engines:
    """Makes engines and remembers them."""

    def __init__(self) -> None:
        self.made: list[FakeEngine] = []

    def __call__(self) -> FakeEngine:
        self.made.append(FakeEngine())
        return self.made[-1]


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def stage(engines: Engines) -> Iterator[DenoiseStage]:
    stage = DenoiseStage(engines)
    stage.wait()
    yield stage
    stage.close()


def generate(stage: DenoiseStage, **params) -> "asyncio.Future":
    return asyncio.ensure_future(stage.generate(make_conditioning(), make_params(**params)))


async def test_a_sample_comes_back_with_what_was_spent(stage):
    denoised = await generate(stage)
    assert denoised.latents == "latents"
    assert (denoised.text, denoised.encode, denoised.denoise) == (USAGE.text, USAGE.encode, USAGE.denoise)


async def test_samples_join_and_leave_as_their_steps_run_out(stage):
    order: list[int] = []
    samples = [generate(stage, num_steps=steps) for steps in (30, 10, 20)]
    for steps, sample in zip((30, 10, 20), samples, strict=True):
        sample.add_done_callback(lambda _, steps=steps: order.append(steps))
    await asyncio.gather(*samples)
    assert order == [10, 20, 30]


async def test_equal_requests_do_not_meet_in_the_engine(stage):
    assert len(await asyncio.gather(*(generate(stage) for _ in range(5)))) == 5


async def test_a_cancelled_sample_has_left_the_engine_when_the_call_ends(stage, engines):
    gone, stays = generate(stage, num_steps=10**9), generate(stage, num_steps=10**9)
    await running(stage, 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert engines.made[0].num_running == 1
    stays.cancel()
    await asyncio.wait({stays})
    assert engines.made[0].num_running == 0


async def test_a_sample_cancelled_twice_still_leaves(stage, engines):
    sample = generate(stage, num_steps=10**9)
    await running(stage, 1)
    engines.made[0].may_tick.clear()
    sample.cancel()
    await asyncio.sleep(0)
    sample.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sample
    engines.made[0].may_tick.set()
    await running(stage, 0)


async def test_one_tick_after_the_last_sample_the_engine_rests(stage, engines):
    await generate(stage, num_steps=3)
    ticks = stage.status().ticks
    await generate(stage, num_steps=3)
    assert stage.status().ticks == ticks + 3


async def test_a_sample_that_the_engine_refuses_is_the_callers_to_mend(stage):
    with pytest.raises(InvalidRequest) as refused:
        await generate(stage, prompt="refuse")
    assert refused.value.param == "solver"


@pytest.mark.parametrize("prompt", ["stumble", "diverge"])
async def test_a_sample_that_fails_leaves_its_neighbours_alone(stage, engines, prompt):
    neighbour = generate(stage, num_steps=50)
    with pytest.raises(StageFailed):
        await generate(stage, prompt=prompt)
    await neighbour
    assert len(engines.made) == 1


async def test_a_broken_tick_fails_its_samples_and_the_next_engine_works(stage, engines):
    neighbour = generate(stage, num_steps=10**9)
    await running(stage, 1)
    crashing = generate(stage, prompt="crash")
    for sample in (neighbour, crashing):
        with pytest.raises(StageFailed, match="RuntimeError"):
            await sample
    assert (await generate(stage)).latents == "latents"
    assert len(engines.made) == 2
    stage.check()


async def test_without_an_engine_every_sample_is_refused_and_the_stage_is_unhealthy():
    def make() -> FakeEngine:
        raise ValueError("tensor pos_embed is missing")

    stage = DenoiseStage(make)
    with pytest.raises(ValueError, match="pos_embed"):
        stage.wait()
    with pytest.raises(StageFailed):
        await generate(stage)
    stage.close()


async def test_a_stage_that_is_closed_fails_what_is_in_it(engines):
    stage = DenoiseStage(engines)
    sample = generate(stage, num_steps=10**9)
    await running(stage, 1)
    stage.close()
    with pytest.raises(StageFailed):
        await sample
    with pytest.raises(StageFailed):
        await generate(stage)


def test_a_loop_that_is_closed_does_not_break_the_engine(stage):
    async def leave_behind() -> None:
        generate(stage, num_steps=10**9)
        await running(stage, 1)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_behind())
    loop.close()
    assert asyncio.run(stage.generate(make_conditioning(), make_params())).latents == "latents"


async def running(stage: DenoiseStage, num: int) -> None:
    while stage.status().running != num:
        await asyncio.sleep(0)
