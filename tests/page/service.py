"""The service of the page's tests: the gateway over real stages of the model `tiny`, on a socket.

It is served under the name of the default model, for which the page has its examples.
"""

import base64
import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import httpx2
import pytest
from PIL import Image

from safelight.pipeline.engine import previews
from safelight.service import inprocess
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import NO_CONTEXT, DecodeResult, PreparedSource, RequestContext, Upload
from safelight.service.served_model import find_served_model
from safelight.service.settings import Settings
from safelight.service.usage.records import UsageRecord
from safelight.service.usage.reporter import Outbox
from tests.page.held_engine import HeldDenoiseStage, TickGate
from tests.service.http_server import served
from tests.service.inprocess_backend import InProcessBackend

SETTINGS = Settings(
    model="tiny",
    served_name="emoji-128",
    default_steps="4",
    max_pictures=4,
    denoise_threads=1,
    peak_tflops=1.0,
)
SIZES = ((64, 64), (96, 64))  # of `tiny` and one more, so that there is a choice
GENERATIONS = "/v1/images/generations"
Pixels = tuple[tuple[int, int], bytes]  # size, and RGBA


class RecordingBackend(InProcessBackend):
    """A backend that keeps what it was sent to edit, and tells when its first image is done, the warm-up."""

    def __init__(self, pipeline: InProcessPipeline) -> None:
        super().__init__(pipeline)
        self.uploads: list[Upload] = []
        self.is_warm = threading.Event()

    async def generate(self, *args: Any, **kwargs: Any) -> DecodeResult:
        result = await super().generate(*args, **kwargs)
        self.is_warm.set()
        return result

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        self.uploads.append(upload)
        return await super().prepare(upload, context)


@dataclass
class Service:
    """The service that the page talks to.

    Attributes:
        url: Its address.
        pipeline: Its stages.
        gate: Holds back the ticks of its engine.
        uploads: The files of all edits, as the gateway read them.
        records: The usage records of all requests, which a test takes out.
    """

    url: str
    pipeline: InProcessPipeline
    gate: TickGate
    uploads: list[Upload]
    records: SimpleQueue[UsageRecord]

    def reset(self) -> None:
        """Let everything that is under way end."""
        self.gate.open()
        self.uploads.clear()
        while not self.records.empty():
            self.records.get_nowait()

    @property
    def num_running(self) -> int:
        """Samples in the engine."""
        return self.pipeline.denoiser.status().running

    def record(self) -> UsageRecord:
        """The usage record of the next request that ends."""
        return self.records.get(timeout=60.0)

    def draw(self, **fields: Any) -> list[bytes]:
        """The files that the service answers with, without a stream."""
        return [base64.b64decode(image["b64_json"]) for image in self._post(fields).json()["data"]]

    def stream(self, ticks: Sequence[int], **fields: Any) -> list[bytes]:
        """The files of a streamed image and its previews, the next of which comes after so many `ticks`.

        The gate is closed in between: `tiny` would be done before its previews are decoded.
        """
        self.gate.hold()
        with httpx2.stream("POST", f"{self.url}{GENERATIONS}", json={**fields, "stream": True}) as response:
            lines = (line for line in response.iter_lines() if line.startswith("data: "))
            files = []
            for count in ticks:
                self.gate.allow(count)
                files.append(base64.b64decode(json.loads(next(lines).removeprefix("data: "))["b64_json"]))
            assert next(lines, None) is None
        self.gate.open()
        self.record()
        return files

    def _post(self, fields: dict[str, Any]) -> httpx2.Response:
        response = httpx2.post(f"{self.url}{GENERATIONS}", json=fields, timeout=60.0).raise_for_status()
        self.record()
        return response


def read_pixels(file: bytes) -> Pixels:
    with Image.open(io.BytesIO(file)) as image:
        return image.size, image.convert("RGBA").tobytes()


@contextmanager
def run_service() -> Iterator[Service]:
    """The service on a free port while the block runs."""
    gate = TickGate()
    records: SimpleQueue[UsageRecord] = SimpleQueue()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess, "DenoiseStage", partial(HeldDenoiseStage, gate=gate))
        patch.setattr(Outbox, "put", lambda self, record: records.put(record))
        # `tiny` denoises faster than it decodes, so that its previews would be dropped
        for name in ("ALONE_SHARE", "SHARED_SHARE"):
            patch.setattr(previews, name, 1000.0)
        model = replace(find_served_model(SETTINGS), sizes=SIZES)
        pipeline = InProcessPipeline(model, SETTINGS)
        backend = RecordingBackend(pipeline)
        try:
            pipeline.wait()
            with served(build_gateway(backend, model, SETTINGS)) as url:
                assert backend.is_warm.wait(60.0)
                yield Service(url, pipeline, gate, backend.uploads, records)
        finally:
            pipeline.close()
