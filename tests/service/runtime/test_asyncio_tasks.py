"""Tasks that are cancelled."""

import asyncio

import pytest

from safelight.service.runtime.asyncio_tasks import uninterrupted


async def test_a_cancellation_waits_for_work_that_must_not_be_interrupted() -> None:
    may_end, has_ended = asyncio.Event(), False

    async def work() -> None:
        nonlocal has_ended
        await may_end.wait()
        has_ended = True

    task = asyncio.create_task(uninterrupted(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended


async def test_the_result_and_the_error_are_those_of_the_work() -> None:
    async def divide(by: int) -> float:
        return 1 / by

    assert await uninterrupted(divide(2)) == 0.5
    with pytest.raises(ZeroDivisionError):
        await uninterrupted(divide(0))
