"""Previews of one image: who gets them, and their decoding beside the image's generation."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from safelight.pipeline.params import NO_PREVIEWS, PreviewRequest, StageCost
from safelight.service.messages import DecodeResult, Preview
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

logger = logging.getLogger(__name__)

MAX_PREVIEWS = 3  # of one image

Latents = TypeVar("Latents")


class PreviewSink(Protocol):
    """Takes the previews of one image."""

    @property
    def request(self) -> PreviewRequest:
        """The previews that it still takes."""
        ...

    def put(self, preview: Preview) -> None: ...


@dataclass(frozen=True, slots=True)
class CallbackSink:
    """Passes previews to a function."""

    request: PreviewRequest
    put: Callable[[Preview], None]


class PreviewDecoding(Generic[Latents]):
    """Decodes the previews of one image as they come, and passes them on.

    A context manager; previews that are not decoded at its end are dropped.

    Args:
        decode: Decodes the latents of a preview; None if it was dropped for newer ones.
        sink: Gets the previews; None if there should not be any.
    """

    def __init__(self, decode: Callable[[Latents], Awaitable[Preview | None]], sink: PreviewSink | None):
        self.request = sink.request if sink else NO_PREVIEWS
        self._decode = decode
        self._sink = sink
        self._tasks: list[asyncio.Task[None]] = []
        self._costs: list[StageCost] = []

    def start(self, latents: Latents) -> None:
        """Begin to decode a preview."""
        self._tasks.append(asyncio.ensure_future(self._run(latents)))

    def charge(self, result: DecodeResult) -> DecodeResult:
        """The image with the cost of its previews in its usage."""
        return replace(result, usage=replace(result.usage, previews=tuple(self._costs)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await cancel_and_wait(*self._tasks)

    async def _run(self, latents: Latents) -> None:
        try:
            preview = await self._decode(latents)
        except Exception as error:  # the image goes on without it
            logger.warning("a preview was not decoded: %s: %s", type(error).__name__, error)
            return
        if preview is not None and self._sink is not None:
            self._costs.append(preview.cost)
            self._sink.put(preview)
