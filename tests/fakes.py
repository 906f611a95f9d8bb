"""Fakes for the service's tests: a backend without Ray; engine, text encoder and decoder without weights."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.schedules import Flow
from safelight.pipeline.engine.previews import SamplePreview
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import (
    NO_PREVIEWS,
    NOT_URGENT,
    ONLY_CALLER,
    DenoiseUsage,
    FinishReason,
    GenerationParams,
    PreviewRequest,
    Share,
    StageCost,
    TextReport,
    Urgency,
)
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.service.backend import STAGES
from safelight.service.dispatcher import RequestDispatcher
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    EncodeResult,
    ImageFormat,
    ImageUsage,
    PreparedSource,
    Preview,
    Quote,
    RequestContext,
    SourceReport,
    StageStatus,
    Upload,
)
from safelight.service.previews import PreviewSink

MODEL = ModelInfo(
    id="fake-8",
    path=Path("/nowhere"),
    family="fake",
    licence="none",
    sizes=((8, 8), (16, 8)),
    num_steps=4,
    guidance_scale=4.0,
    solver="euler",
    solvers=("euler", "ddim", "plms"),
    timestep_spacing="trailing",
    spacings=("trailing", "karras"),
    schedule=Flow(),
    prediction="flow",
)
# All numbers differ, so that one in the place of another is seen; seconds are exact in binary.
USAGE = ImageUsage(
    text=TextReport(
        3,
        truncated=False,
        unknown_words=("blorp",),
        prompt_syntax=("[x]",),
        corrected_words=(("aple", "apple"),),
    ),
    encode=StageCost(device_seconds=0.25, flops=100, queue_seconds=0.5),
    denoise=DenoiseUsage(
        ticks=6,
        nfe=5,
        rows=9,
        tokens=153,
        cost=StageCost(device_seconds=1.75, flops=2000, queue_seconds=0.125),
    ),
    decode=StageCost(device_seconds=0.375, flops=30, queue_seconds=0.0625),
)

# Of one image: as many as a request can ask for. Their seconds and operations are exact in binary, too.
PREVIEWS = tuple(Preview(k, f"preview {k}".encode(), StageCost(2.0**-k / 16, 3 << k)) for k in range(3))
SOURCE = SourceReport(
    size=(16, 8), uploaded=(33, 16), crop=(0, 0, 32, 16), cost=StageCost(0.5, 7, queue_seconds=0.25)
)


def make_params(**changes: Any) -> GenerationParams:
    return replace(GenerationParams("p", "", 8, 8, 4, 4.0, "euler", 1), **changes)


def fake_image(params: GenerationParams, output: ImageFormat) -> bytes:
    """Bytes made from the format and the parameters."""
    return f"{output}{params}".encode()


class FakeBackend:
    """Answers at once. Raises `errors` first, one per call; while `gate` is closed, calls wait.

    A call that takes previews gets the first of `previews` at once, before an error and before the gate.
    `calls` holds the arguments of every call, also of those that raise; `drawn` those of finished images.
    """

    def __init__(self, *errors: Exception, stages: Mapping[str, StageStatus | None] | None = None) -> None:
        self.errors = list(errors)
        self.image_errors: list[Exception] = []  # likewise, but not for uploads
        self.calls: list[tuple[GenerationParams, ImageFormat, RequestContext]] = []
        self.sources: list[PreparedSource | None] = []  # of every call
        self.uploads: list[Upload] = []
        self.quoted: list[tuple[GenerationParams, RequestContext]] = []
        self.answer = Quote(True, 29.5, 2.5, 0.0, 1.25)
        self.drawn: list[tuple[GenerationParams, ImageFormat]] = []
        self.previews = PREVIEWS
        self.preview_requests: list[PreviewRequest] = []
        self.num_cancelled = 0
        self.waiting = asyncio.Semaphore(0)  # released once for every call that has begun
        self.gate = asyncio.Event()
        self.gate.set()
        self.stages = stages or dict.fromkeys(STAGES, StageStatus(images=1))

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        self.calls.append((params, output, context))
        self.sources.append(source)
        if previews is not None:
            self.preview_requests.append(previews.request)
            for preview in self.previews[: previews.request.count]:
                if preview.index >= previews.request.first:
                    previews.put(preview)
        if errors := self.errors or self.image_errors:
            raise errors.pop(0)
        self.waiting.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        self.drawn.append((params, output))
        return DecodeResult(fake_image(params, output), USAGE)

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        """The source of an upload, which is one of (16, 8) pixels; raises `InvalidParams` for `bad`."""
        self.uploads.append(upload)
        if self.errors:
            raise self.errors.pop(0)
        if upload.image == b"bad":
            raise InvalidParams("image", "image must be a PNG, JPEG or WebP file")
        size = upload.size or (16, 8)
        return PreparedSource(replace(SOURCE, size=size), upload)

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        self.quoted.append((params, context))
        return self.answer

    async def status(self) -> Mapping[str, StageStatus | None]:
        return self.stages


# How a sample of FakeEngine ends, by its prompt.
ENDS = {"diverge": FinishReason.DIVERGED, "expire": FinishReason.EXPIRED}


@dataclass
class FakeSample:
    params: GenerationParams
    ticks_left: int
    previews: PreviewRequest


class FakeEngine:
    """Counts ticks, and keeps when each sample arrived and by when it must be done.

    The prompts `refuse` and `stumble` fail `add`, `crash` the tick, `diverge` and `expire` the sample.
    """

    last_tick = SimpleNamespace(rows=2, tokens=32, seconds=0.03, expected_seconds=0.02)
    attention = "by hand"
    curve = UNKNOWN
    peak_flops = 1e9
    estimator = SimpleNamespace(estimate=lambda params: (params.num_steps, 1e9 * params.num_steps))
    open_seconds = 0.5
    work_left = 2.0

    def __init__(self) -> None:
        self.samples: dict[str, FakeSample] = {}
        self.times: list[tuple[float, float]] = []  # arrival and deadline of every sample that was added
        self.shares: list[Share] = []  # whose each was
        self.urgencies: list[Urgency] = []  # how urgent each was
        self.aborted: list[Any] = []
        self.most_running = 0
        self.ready_previews: list[SamplePreview] = []
        self.may_tick = threading.Event()
        self.may_tick.set()

    @property
    def progress(self) -> list[tuple[str, int]]:
        return [
            (request_id, sample.params.num_steps - sample.ticks_left)
            for request_id, sample in self.samples.items()
        ]

    @property
    def num_running(self) -> int:
        return len(self.samples)

    num_waiting = 0

    @property
    def has_work(self) -> bool:
        return bool(self.samples or self.aborted)

    def add(
        self,
        request_id: str,
        params: GenerationParams,
        cond: Any,
        uncond: Any,
        arrived: float,
        deadline: float,
        source: Any = None,
        previews: PreviewRequest = NO_PREVIEWS,
        share: Share = ONLY_CALLER,
        urgency: Urgency = NOT_URGENT,
    ) -> None:
        if params.prompt == "refuse":
            raise InvalidParams("solver", "no")
        if params.prompt == "stumble":
            raise RuntimeError("shape mismatch")
        self.times.append((arrived, deadline))
        self.shares.append(share)
        self.urgencies.append(urgency)
        self.samples[request_id] = FakeSample(params, params.num_steps, previews)
        self.most_running = max(self.most_running, len(self.samples))

    def abort(self, request_id: str) -> None:
        if self.samples.pop(request_id, None):
            self.aborted.append(_outcome(request_id, FinishReason.ABORTED))

    def take_previews(self) -> list[Any]:
        previews, self.ready_previews = self.ready_previews, []
        return previews

    def step(self) -> list[Any]:
        """A sample has one preview a tick, as many as it should have, but none at its last tick."""
        self.may_tick.wait(10)
        if any(sample.params.prompt == "crash" for sample in self.samples.values()):
            raise RuntimeError("the device is on fire")
        outcomes, self.aborted = self.aborted, []
        for request_id, sample in list(self.samples.items()):
            sample.ticks_left -= 1
            index = sample.params.num_steps - sample.ticks_left - 1
            if sample.ticks_left and sample.previews.first <= index < sample.previews.count:
                latents = cast(Tensor, f"preview {index}")
                self.ready_previews.append(SamplePreview(request_id, index, latents, budget_seconds=0.5))
            if not sample.ticks_left:
                del self.samples[request_id]
                reason = ENDS.get(sample.params.prompt, FinishReason.DONE)
                outcomes.append(_outcome(request_id, reason))
        return outcomes


def _outcome(request_id: str, reason: FinishReason) -> Any:
    return SimpleNamespace(
        request_id=request_id, reason=reason, latents="latents", usage=USAGE.denoise, error=None
    )


def make_conditioning() -> EncodeResult:
    cond, uncond = cast(TextStates, "cond"), cast(TextStates, "uncond")
    return EncodeResult(cond, uncond, text=USAGE.text, cost=USAGE.encode)


@dataclass(frozen=True)
class FakeStates:
    """A text's states, as far as the service uses them."""

    text: str
    report: TextReport
    cost: StageCost
    num_bytes: int = 10


class FakeTextEncoder:
    """Knows every word except `blorp`; takes at most two texts in a batch."""

    max_batch = 2

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> list[FakeStates]:
        self.batches.append(list(texts))
        return [FakeStates(text, _report(text), StageCost(1.0, 10)) for text in texts]


def _report(text: str) -> TextReport:
    words = text.split()
    return TextReport(
        len(words),
        truncated=len(words) > 5,
        unknown_words=tuple(word for word in words if word == "blorp"),
        prompt_syntax=tuple(word for word in words if word.startswith("--")),
        corrected_words=tuple((word, "apple") for word in words if word == "aple"),
    )


class FakeDecoder:
    """Returns the latents as pixels; takes at most two in a batch."""

    max_batch = 2

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.previews: list[tuple[Any, int]] = []  # latents and scales

    def preview_flops(self, latent: Any) -> dict[int, int]:
        return {1: 20, 2: 10}

    def decode_preview(self, latent: Any, scale: int = 1) -> tuple[Any, StageCost] | ArithmeticError:
        self.previews.append((latent, scale))
        return (
            latent if isinstance(latent, ArithmeticError) else (latent, StageCost(2.0 / scale, 20 // scale))
        )

    def decode(self, latents: Sequence[Any]) -> list[tuple[Any, StageCost] | ArithmeticError]:
        self.batches.append(list(latents))
        return [
            latent if isinstance(latent, ArithmeticError) else (latent, StageCost(2.0, 20))
            for latent in latents
        ]


def images_in_flight(dispatcher: RequestDispatcher) -> int:
    """Of `MODEL`, as the gateway tells the ledger."""
    return dict(dispatcher._metrics.outbox.collect("gateway", 0).in_flight).get(MODEL.id, 0)
