"""Cancelling asyncio tasks."""

import asyncio
from typing import Any


async def cancel_and_wait(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel `tasks` and wait until all of them have ended; what they raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
