"""Reads uploaded images on a thread of its own, so that a large one does not hold up other images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from safelight.pipeline.params import StageCost
from safelight.service.messages import RequestContext, Upload
from safelight.service.stages.usage_meter import UsageMeter

if TYPE_CHECKING:
    from safelight.pipeline.engine.source_image import SourceImage

ReadSource = Callable[[Upload], "SourceImage"]


class UploadReader:
    """One upload at a time, which bounds the memory of decoded uploads.

    Args:
        read_source: Reads the files of an edit; None in a stage that gets none.
        meter: The stage's usage meter, which counts the thread's seconds as busy ones.
    """

    def __init__(self, read_source: ReadSource | None, meter: UsageMeter):
        self._read_source = read_source
        self._meter = meter
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")

    async def read(self, upload: Upload, context: RequestContext) -> tuple[SourceImage, StageCost]:
        """The image in `upload`, and the cost of reading it, which is recorded here.

        Raises `InvalidParams` for an upload that cannot be edited; its cost is recorded, too.
        """
        arrived = time.perf_counter()
        return await asyncio.wrap_future(self._thread.submit(self._read, upload, context, arrived))

    def close(self) -> None:
        """End the thread after the upload that it is reading."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, upload: Upload, context: RequestContext, arrived: float) -> tuple[SourceImage, StageCost]:
        assert self._read_source is not None
        started = time.perf_counter()
        try:
            image = self._read_source(upload)
        finally:
            seconds = time.perf_counter() - started
            cost = StageCost(seconds, 0, started - arrived)
            self._meter.add_busy(seconds)
            self._meter.record_usage(context, cost)
        return image, cost
