"""What travels from stage to stage. Tensors ride inside, but nothing here imports torch: the gateway reads the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from safelight.pipeline.params import DenoiseUsage, StageCost, TextReport
from safelight.pipeline.scheduling.cost_curve import CostCurve

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.pipeline.engine.text_encoder import TextStates


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What goes with an image from stage to stage: whose account pays, and the trace that it belongs to."""

    record_id: str = ""  # the request's, which no client chooses; empty: nobody's, as of the warm-up
    traceparent: str | None = None  # W3C's header of the gateway's span


NO_CONTEXT = RequestContext()


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How an image is to be written."""

    format: str = "png"
    compression: int = 100  # of webp and jpeg: the quality


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """Text encoding's answer for one image."""

    cond: TextStates
    uncond: TextStates | None  # only under guidance
    text: TextReport
    cost: StageCost


@dataclass(frozen=True, slots=True)
class DenoiseResult:
    """Denoising's answer for one image, with what was spent so far."""

    latents: Tensor
    text: TextReport
    encode: StageCost
    denoise: DenoiseUsage


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """What one image cost, stage by stage."""

    text: TextReport
    encode: StageCost
    denoise: DenoiseUsage
    decode: StageCost

    @property
    def stages(self) -> dict[str, StageCost]:
        return {"encode": self.encode, "denoise": self.denoise.cost, "decode": self.decode}

    @property
    def flops(self) -> int:
        return sum(cost.flops for cost in self.stages.values())

    @property
    def queue_seconds(self) -> float:
        return sum(cost.queue_seconds for cost in self.stages.values())

    @property
    def image_tokens(self) -> int:
        """Tokens of the image itself: the network saw them once a row."""
        return self.denoise.tokens // self.denoise.rows if self.denoise.rows else 0


@dataclass(frozen=True, slots=True)
class DecodeResult:
    """A finished image, as bytes in the asked format."""

    image: bytes
    usage: ImageUsage


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What a stage says of itself: totals since it started, and who is in it now."""

    is_asleep: bool = False  # scaled to no replica; the next image wakes it
    images: int = 0  # finished
    running: int = 0
    waiting: int = 0
    ticks: int = 0
    rows: int = 0  # over all ticks
    cache_hits: int = 0
    cache_misses: int = 0
    attention: str | None = None  # the denoiser's back end
    peak_flops: float | None = None  # a second, of the denoiser's device
    curve: CostCurve | None = None  # what its ticks, texts or images cost, as corrected by the last one
