"""A job that is being drawn in this gateway, and the interface of what draws it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from safelight.service.jobs.job import Job, JobResult
from safelight.service.messages import Upload

End = Callable[[JobResult], Awaitable[None]]


@dataclass(eq=False)
class Drawing:
    """A job that is drawn here.

    Attributes:
        job: As it was claimed.
        upload: The files of an edit.
        renewed: When its lease was last renewed, by the monotonic clock.
        steps_done: Returns how many steps are done, as far as that is known.
        is_ending: Whether its end is being written, which nothing stops any more.
        is_given_back: Whether it is drawn no further, and that not at its caller's wish.
        task: Draws it.
    """

    job: Job
    upload: Upload | None = field(default=None, repr=False)
    renewed: float = field(default_factory=time.monotonic)
    steps_done: Callable[[], int] = lambda: 0
    is_ending: bool = False
    is_given_back: bool = False
    task: "asyncio.Task[None] | None" = None


class Draw(Protocol):
    """Draws a job and ends it."""

    async def __call__(self, drawing: Drawing, end: End) -> None:
        """Draw the images, store them, and `end` the job with them, which raises `LeaseLost`.

        Raises any error of a request, by which the job ends, or is drawn again.
        """
        ...
