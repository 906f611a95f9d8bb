"""The nouns that every layer shares: what is asked for, what it cost, how it ended. No torch here."""

from dataclasses import dataclass, fields
from enum import StrEnum


class FinishReason(StrEnum):
    """How a sample left the engine."""

    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"
    EXPIRED = "expired"  # its deadline came first


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """One image, fully decided: nothing here is a default, a range or a choice any more."""

    prompt: str
    negative_prompt: str
    width: int  # pixels
    height: int  # pixels
    num_steps: int
    guidance_scale: float  # uncond + w * (cond - uncond); 1 is off
    solver: str
    seed: int
    image_index: int = 0  # which image of its request: noise is a function of (seed, image_index, tick)
    timestep_spacing: str = "trailing"  # where the steps stand
    eta: float = 0.0  # DDIM's share of fresh noise
    guidance_interval: tuple[float, float] = (
        0.0,
        1.0,
    )  # the times, 0 data to 1 noise, at which guidance acts
    guidance_stride: int = 1  # every how many guided ticks both predictions are evaluated; between them their difference is reused
    guidance_rescale: float = (
        0.0  # phi: how far a guided prediction is scaled back to the spread of the unguided one
    )


@dataclass(frozen=True, slots=True)
class TextReport:
    """What the text encoder made of a prompt."""

    num_tokens: int  # before truncation, without the start and end marks
    truncated: bool
    unknown_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage spent on one image: its share of the batch's device time, and floating-point operations."""

    device_seconds: float
    flops: int
    queue_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class UsageAmounts:
    """What work took: the one record that stages report, running samples carry and the ledger sums."""

    device_seconds: float = 0.0
    queue_seconds: float = 0.0
    flops: int = 0
    nfe: int = 0  # network evaluations of the guided model, the unit of the solver papers
    rows: int = 0  # rows of the network's batch
    tokens: int = 0  # image tokens over all rows

    def __add__(self, other: "UsageAmounts") -> "UsageAmounts":
        return UsageAmounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class DenoiseUsage:
    """What the engine spent on one sample, from `Engine.add` to its last tick."""

    ticks: int
    nfe: int  # network evaluations of the guided model, the unit of the solver papers
    rows: int  # rows of the network's batch: two an evaluation under guidance, one without
    tokens: int  # image tokens over all rows
    cost: StageCost
    is_batch_invariant: bool = True  # the bits are those that the sample would have alone
