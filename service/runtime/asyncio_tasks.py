"""Ending tasks properly."""

import asyncio
from typing import Any


async def cancel_all(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel `tasks` and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
