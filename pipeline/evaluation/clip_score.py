"""The second opinion: what a CLIP that shares no weight with the model makes of its images, with a ceiling and a floor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from safelight.models.checkpoints.json_files import CLIP_CONFIG
from safelight.models.evaluation.clip_scorer import SCORER, Scorer
from safelight.models.evaluation.gallery import Gallery
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.evaluation.nearest_image import WHITE
from safelight.pipeline.evaluation.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of `count` scores, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {
            "mean": round(self.value, 2),
            "low": round(self.low, 2),
            "high": round(self.high, 2),
            "count": self.count,
        }

    def as_text(self) -> str:
        """For people."""
        return f"{self.value:6.1f}  ({self.low:.1f} to {self.high:.1f}; mean of {self.count})"

    @classmethod
    def of(cls, scores: np.ndarray) -> "Mean":
        """Of scores (P,); a single one has no interval but itself."""
        middle = float(scores.mean())
        half = 1.96 * float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        return cls(middle, middle - half, middle + half, len(scores))


def load_scorer(model: ModelInfo) -> Scorer | None:
    """The scorer beside the weights of `model`, if it brings one; `CheckpointError` (a `ValueError`) if it is broken."""
    return Scorer.load(model.path) if (model.path / SCORER / CLIP_CONFIG).exists() else None


def clip_scores(
    scorer: Scorer, gallery: Gallery, prompts: Sequence[Prompt], drawn: np.ndarray
) -> dict[str, Mean]:
    """What was drawn (P, H, W, 3) uint8 for `prompts`, by name of figure.

    `clip_score`: each image with its own prompt. `clip_ceiling`: a clean image of what the prompt names, with the prompt.
    `clip_floor`: each image with the prompt after next.
    """
    texts = [prompt.text for prompt in prompts]
    named = [i for i, prompt in enumerate(prompts) if prompt.concepts]
    found = {
        "clip_score": scorer.score(drawn, texts),
        "clip_floor": scorer.score(drawn, [*texts[2:], *texts[:2]]),
    }
    if named:
        clean = np.stack([_clean(gallery, prompts[i]) for i in named])
        found["clip_ceiling"] = scorer.score(clean, [texts[i] for i in named])
    return {name: Mean.of(scores) for name, scores in found.items()}


def _clean(gallery: Gallery, prompt: Prompt) -> np.ndarray:
    """The first clean image (32, 32, 3) uint8 of what a prompt names, on its background."""
    number = next(
        i
        for i, entry in enumerate(gallery.entries)
        if entry.hexcode in prompt.concepts
        and (prompt.style in (None, entry.style) or _lacks(gallery, prompt))
    )
    flat = torch.tensor(gallery.backgrounds[prompt.background or WHITE])[:, None, None] / 255.0
    pixels = gallery.pixels[number, :3] + flat * (1.0 - gallery.pixels[number, 3:])
    clean: np.ndarray = (255.0 * pixels).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return clean


def _lacks(gallery: Gallery, prompt: Prompt) -> bool:
    """Whether no concept of a prompt was ever drawn in its style."""
    return not any(
        entry.hexcode in prompt.concepts and entry.style == prompt.style for entry in gallery.entries
    )
