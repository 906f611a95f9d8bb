"""Messages between the stages. Some hold tensors, but torch is not imported here: gateways use them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from safelight.pipeline.params import (
    ONLY_CALLER,
    DenoiseUsage,
    GenerationParams,
    Share,
    StageCost,
    TextReport,
)
from safelight.pipeline.scheduling.cost_curve import CostCurve

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.pipeline.engine.source_image import SourceImage
    from safelight.pipeline.engine.source_latents import SourceLatents
    from safelight.pipeline.engine.text_encoder import TextStates


@dataclass(frozen=True, slots=True)
class PromiseTerms:
    """By when the denoiser must have finished an image, and how urgent it is among those of its caller."""

    due: float | None = None  # Unix time; None: the service promises nothing
    is_default: bool = False  # a promise that the request did not ask for, which is longer for a long one
    priority: int = 0  # images of a higher one go first
    is_background: bool = False  # of a job, which nobody waits for
    images: int = 1  # of the request
    is_certain: bool = False  # it was let in before
    seconds: float = 0.0  # from the gateway's check until `due`
    patience: float = 1.0  # part of the time until `due` that waiting for others may take up; see promises


@dataclass(frozen=True, slots=True)
class DenoiseForecast:
    """What the denoiser said of an image when it let it in, and what came of it."""

    promised_seconds: float | None  # None: nothing was promised
    forecast_seconds: float
    seconds: float  # from its arrival until it left
    backlog_seconds: float  # of the denoiser, the image included
    replica: str  # of the denoiser, unique


@dataclass(frozen=True, slots=True)
class Quote:
    """What a denoiser would say of an image, if it came now."""

    is_admitted: bool
    promised_seconds: float | None
    forecast_seconds: float
    retry_seconds: float
    backlog_seconds: float


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Passed along with an image from stage to stage: its usage record, its trace and its promise."""

    record_id: str = ""  # of the request's usage record; empty for the warm-up image, which has none
    traceparent: str | None = None  # of the gateway's span, a W3C header
    request_id: str = ""  # the client's own, or ours, for log lines
    model: str = ""  # id of the model that draws it; empty: the first of the service or the stage
    share: Share = ONLY_CALLER  # of the API key that asks for it
    terms: PromiseTerms | None = None  # None: it is let in in any case
    is_alone: bool = False  # the denoiser was lost with the image, so that it draws it without batch-mates


NO_CONTEXT = RequestContext()


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """The file format of an image."""

    format: str = "png"
    compression: int = 100  # quality of webp and jpeg, 0 to 100


@dataclass(frozen=True, slots=True)
class Upload:
    """The files of an edit, as they were sent."""

    image: bytes = field(repr=False)
    mask: bytes | None = field(default=None, repr=False)
    size: tuple[int, int] | None = None  # of the edited image; None: the nearest to the upload's of `sizes`
    sizes: tuple[tuple[int, int], ...] = ()  # that the model draws; empty: those of the stage's first model


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What became of an upload, and what that cost the decoding stage, which has the autoencoder."""

    size: tuple[int, int]  # width and height of the edited image in pixels
    uploaded: tuple[int, int]  # of the upload, upright
    crop: tuple[int, int, int, int]  # the part of it that is edited: left, top, right, bottom
    cost: StageCost


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """The source of an edit as the stages use it: latents to start from, pixels to paste back."""

    latents: SourceLatents
    image: SourceImage


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """An upload that is ready for any number of edits."""

    report: SourceReport
    content: Any  # an `EncodedSource` or the backend's reference to one, which only the backend looks into


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """The text encoder's result for one image."""

    cond: TextStates
    uncond: TextStates | None  # None without guidance
    text: TextReport
    cost: StageCost


@dataclass(frozen=True, slots=True)
class DenoiseResult:
    """The denoiser's result for one image, with the usage so far."""

    latents: Tensor
    text: TextReport
    encode: StageCost
    denoise: DenoiseUsage
    image_id: str = ""  # ties previews to their image; empty without previews
    forecast: DenoiseForecast | None = None


@dataclass(frozen=True, slots=True)
class PreviewLatents:
    """What an image that is being denoised would be by its latest tick."""

    image_id: str  # as in `DenoiseResult`
    index: int  # 0 for the image's first preview
    latents: Tensor
    budget_seconds: float  # device time that decoding it may take


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview of an unfinished image: the bytes of its file, and its cost in the decoder."""

    index: int  # 0 for the image's first preview
    image: bytes
    cost: StageCost


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one image cost in each stage."""

    text: TextReport
    encode: StageCost
    denoise: DenoiseUsage
    decode: StageCost
    previews: tuple[StageCost, ...] = ()  # in the decoder
    source: SourceReport | None = None  # of the first image of an edit: one upload serves the whole request
    forecast: DenoiseForecast | None = None

    @property
    def stages(self) -> dict[str, StageCost]:
        """The costs by stage; the decoder's are also those of previews and of the source."""
        decode = sum(self.previews, self.decode if self.source is None else self.decode + self.source.cost)
        return {"encode": self.encode, "denoise": self.denoise.cost, "decode": decode}

    @property
    def flops(self) -> int:
        return sum(cost.flops for cost in self.stages.values())

    @property
    def queue_seconds(self) -> float:
        return sum(cost.queue_seconds for cost in self.stages.values())

    @property
    def image_tokens(self) -> int:
        """Tokens of the image itself; each row of the network holds them once."""
        return self.denoise.tokens // self.denoise.rows if self.denoise.rows else 0


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """A finished image: the bytes of its file, and its usage."""

    image: bytes
    usage: ImageUsage


@dataclass(frozen=True, slots=True)
class StageStatus:
    """The status of a stage: totals since it started, and its load at this moment."""

    is_asleep: bool = False  # scaled to zero replicas; the next image starts one
    images: int = 0  # finished
    previews: int = 0  # decoded
    running: int = 0
    waiting: int = 0
    ticks: int = 0
    rows: int = 0  # over all ticks
    cache_hits: int = 0
    cache_misses: int = 0
    attention: str | None = None  # the denoiser's attention back end
    peak_flops: float | None = None  # peak FLOP/s of the denoiser's device
    # measured seconds by operations of a tick, text or image; updated by every measurement
    curve: CostCurve | None = None


def with_size_of(params: GenerationParams, source: PreparedSource | None) -> GenerationParams:
    """`params` with the size of the source, if there is one."""
    if source is None:
        return params
    width, height = source.report.size
    return replace(params, width=width, height=height)


def with_source_usage(results: Sequence[DecodeResult], source: PreparedSource | None) -> list[DecodeResult]:
    """The images of one request, the first of them with the usage of their source, if there is one."""
    if source is None:
        return list(results)
    first, *others = results
    return [replace(first, usage=replace(first.usage, source=source.report)), *others]
