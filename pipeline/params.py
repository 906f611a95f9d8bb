"""The records that all layers share: generation parameters, usage and finish reason. Free of torch."""

import math
from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """How a sample left the engine."""

    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"
    DIVERGED = "diverged"  # its numbers are not finite
    TOO_LARGE = "too large"  # for the device's memory, also alone
    EXPIRED = "expired"  # its deadline passed first


@dataclass(frozen=True, slots=True)
class EditParams:
    """How an image is made from another one, its source."""

    strength: float  # share of the steps that are taken, 0 to 1; 1 starts from pure noise
    is_inpainting: bool = False  # redraws only a part of the source, which a mask shows


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """The parameters of one image, with every default filled in and every random choice made."""

    prompt: str
    negative_prompt: str
    width: int  # pixels
    height: int  # pixels
    num_steps: int  # solver steps
    guidance_scale: float  # uncond + w * (cond - uncond); 1 is off
    solver: str
    seed: int
    image_index: int = 0  # position within its request; noise is a function of (seed, image_index, tick)
    timestep_spacing: str = "trailing"  # rule that places the steps in time
    eta: float = 0.0  # DDIM's share of fresh noise, 0 to 1
    # first and last time (0 data to 1 noise) at which guidance acts
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    # both predictions are evaluated at every k-th guided tick; the ticks between reuse their difference
    guidance_stride: int = 1
    # phi: how far a guided prediction is scaled towards the standard deviation of the conditional one
    guidance_rescale: float = 0.0
    edit: EditParams | None = None  # None: drawn from noise alone

    @property
    def steps_taken(self) -> int:
        """The solver steps that are taken: an edit leaves out the first ones, but takes at least one."""
        if self.edit is None:
            return self.num_steps
        # a product of floats may exceed a whole number by its last bit
        return max(1, math.ceil(self.edit.strength * self.num_steps - 1e-9))


@dataclass(frozen=True, slots=True)
class Share:
    """Who asks for an image, and that caller's weight among callers who wait for the same device."""

    caller: str = ""  # id of an API key; empty without keys, so that all requests are one caller's
    weight: float = 1.0  # positive
    is_background: bool = False  # whether it takes only what the others leave


ONLY_CALLER = Share()
# All work in the background is one caller's; who of its callers goes first is decided before it comes here.
BACKGROUND = Share("background", is_background=True)


@dataclass(frozen=True, slots=True)
class Urgency:
    """How soon an image is needed, among those of its caller."""

    promise: float = math.inf  # when it must leave the engine, by `time.perf_counter`; infinite: no promise
    level: int = 0  # images of a higher level go first
    is_background: bool = False  # goes after others until it must start to keep `promise`


NOT_URGENT = Urgency()


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """How many previews an image should have, of which those before `first` are not made (again)."""

    count: int = 0
    first: int = 0


NO_PREVIEWS = PreviewRequest()


@dataclass(frozen=True, slots=True)
class TextReport:
    """How the text encoder tokenized a prompt."""

    num_tokens: int  # before truncation, without start and end tokens
    truncated: bool
    unknown_words: tuple[str, ...]
    prompt_syntax: tuple[str, ...] = ()  # marks that some programs obey, such as weights; without effect
    corrected_words: tuple[tuple[str, str], ...] = ()  # as typed, and the known word that was read instead


@dataclass(frozen=True, slots=True)
class StageCost:
    """The cost of one image in one stage: its share of the batch's device time, and its operations."""

    device_seconds: float
    flops: int
    queue_seconds: float = 0.0

    def __add__(self, other: "StageCost") -> "StageCost":
        return StageCost(
            self.device_seconds + other.device_seconds,
            self.flops + other.flops,
            self.queue_seconds + other.queue_seconds,
        )


@dataclass(frozen=True, slots=True)
class UsageAmounts:
    """Amounts of work, which stages report, running samples carry and the ledger adds up."""

    device_seconds: float = 0.0
    queue_seconds: float = 0.0
    flops: int = 0
    nfe: int = 0  # network evaluations of the guided model, the unit of the solver papers
    rows: int = 0  # rows of the network's batch
    tokens: int = 0  # image tokens over all rows

    def __add__(self, other: "UsageAmounts") -> "UsageAmounts":
        return UsageAmounts(
            self.device_seconds + other.device_seconds,
            self.queue_seconds + other.queue_seconds,
            self.flops + other.flops,
            self.nfe + other.nfe,
            self.rows + other.rows,
            self.tokens + other.tokens,
        )


@dataclass(frozen=True, slots=True)
class DenoiseUsage:
    """The work of the engine on one sample, from `Engine.add` to its last tick."""

    ticks: int
    nfe: int  # network evaluations of the guided model, the unit of the solver papers
    rows: int  # rows of the network's batch: two per evaluation with guidance, one without
    tokens: int  # image tokens over all rows
    cost: StageCost
    is_batch_invariant: bool = True  # the result has the bits that the sample gets in a batch of its own
