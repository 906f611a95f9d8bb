"""The images of a streamed request and their previews, between the tasks that draw them and their reader.

A reader may be slow: of each image at most the newest preview waits for it, and none once the image is done.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from safelight.pipeline.params import GenerationParams, PreviewRequest
from safelight.service.messages import DecodeResult, Preview


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """A preview of an image, or the image."""

    params: GenerationParams  # of the image
    content: Preview | DecodeResult


class ImageStream:
    """What is ready of a request's images, finished images first.

    Args:
        num_previews: How many previews each image should have.
    """

    def __init__(self, num_previews: int):
        self._num_previews = num_previews
        self._images: deque[StreamEvent] = deque()
        self._previews: OrderedDict[int, StreamEvent] = OrderedDict()
        self._changed = asyncio.Event()
        self._has_source = asyncio.Event()

    def sink(self, params: GenerationParams) -> "ImageSink | None":
        """The sink for the previews of one image; None if there should not be any."""
        return ImageSink(self, params, self._num_previews) if self._num_previews else None

    def put(self, params: GenerationParams, content: Preview | DecodeResult) -> None:
        """Offer an image or a preview of it, in place of a preview of this image that was not read."""
        self._previews.pop(params.image_index, None)
        if isinstance(content, Preview):
            self._previews[params.image_index] = StreamEvent(params, content)
        else:
            self._images.append(StreamEvent(params, content))
        self._changed.set()

    def begin(self) -> None:
        """Say that the upload of an edit has been read, if there is one."""
        self._has_source.set()

    async def wait_for_source(self, work: "asyncio.Future[Any]") -> None:
        """Wait until `begin` was called, by `work`; raises the error of `work` if that ends before."""
        work.add_done_callback(lambda _: self._has_source.set())
        await self._has_source.wait()
        if work.done():
            work.result()

    def take(self) -> StreamEvent | None:
        """Take out the next event, if there is one."""
        if self._images:
            return self._images.popleft()
        if self._previews:
            return self._previews.popitem(last=False)[1]
        return None

    async def events(
        self, work: "asyncio.Future[Any]", idle_seconds: float
    ) -> AsyncIterator[StreamEvent | None]:
        """All events until `work` is done; raises its error, after the images that were finished before.

        Yields None whenever there was no event for `idle_seconds`.
        """
        work.add_done_callback(lambda _: self._changed.set())
        while True:
            self._changed.clear()
            is_done = work.done()
            while (event := self.take()) is not None:
                yield event
            if is_done:
                work.result()
                return
            if not await _is_set_within(self._changed, idle_seconds):
                yield None


class ImageSink:
    """Puts the previews of one image into a stream, each once, also if the image is drawn again."""

    def __init__(self, stream: ImageStream, params: GenerationParams, num_previews: int):
        self._stream = stream
        self._params = params
        self._num_previews = num_previews
        self._next_index = 0

    @property
    def request(self) -> PreviewRequest:
        return PreviewRequest(self._num_previews, first=self._next_index)

    def put(self, preview: Preview) -> None:
        """Offer a preview, unless this one or a later one was offered before."""
        if preview.index >= self._next_index:
            self._next_index = preview.index + 1
            self._stream.put(self._params, preview)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
