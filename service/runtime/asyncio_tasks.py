"""Cancelling asyncio tasks, and reading what a call gives before it returns."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def cancel_and_wait(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel `tasks` and wait until all of them have ended; what they raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def uninterrupted(work: Awaitable[Result]) -> Result:
    """The result of `work`, which a cancellation of the caller does not interrupt but wait for.

    For uses of the database: SQLite's driver has a thread for a connection, and a use that is interrupted
    can leave a task behind that waits for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():  # a loop that ends may cancel the caller again
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise


async def items_then_result(
    start: Callable[[Callable[[Item], None]], Coroutine[Any, Any, Result]],
) -> AsyncGenerator[Item | Result, None]:
    """The items that a call gives while it runs, as they come, and its result as the last one.

    A reader that stops early must close the iterator, which cancels the call and waits for its end.

    Args:
        start: Makes the call; what it passes to its argument is an item.
    """
    items: asyncio.Queue[Item | None] = asyncio.Queue()
    call = asyncio.ensure_future(start(items.put_nowait))
    call.add_done_callback(lambda _: items.put_nowait(None))
    try:
        while (item := await items.get()) is not None:
            yield item
        yield call.result()
    finally:
        await cancel_and_wait(call)
