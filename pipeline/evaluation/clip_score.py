"""CLIP scores of generated images, with a ceiling and a floor: a second measure of prompt fidelity."""

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
    """The mean of `count` scores, with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """The mean as a JSON object."""
        return {
            "mean": round(self.value, 2),
            "low": round(self.low, 2),
            "high": round(self.high, 2),
            "count": self.count,
        }

    def as_text(self) -> str:
        """The mean as text."""
        return f"{self.value:6.1f}  ({self.low:.1f} to {self.high:.1f}; mean of {self.count})"

    @classmethod
    def from_scores(cls, scores: np.ndarray) -> "Mean":
        """The mean of scores (P,); the interval of a single score has no width."""
        value = float(scores.mean())
        half_width = 1.96 * float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        return cls(value, value - half_width, value + half_width, len(scores))


def load_scorer(model: ModelInfo) -> Scorer | None:
    """The CLIP scorer of `model`; None if it has none.

    Raises `CheckpointError`, a `ValueError`, if it cannot be loaded.
    """
    return Scorer.load(model.path) if (model.path / SCORER / CLIP_CONFIG).exists() else None


def clip_scores(
    scorer: Scorer, gallery: Gallery, prompts: Sequence[Prompt], images: np.ndarray
) -> dict[str, Mean]:
    """Score generated images (P, H, W, 3) uint8, one for each prompt.

    Returns:
        `clip_score`: each image with its own prompt.
        `clip_floor`: each image with the prompt after next.
        `clip_ceiling`: a clean image of the prompt's concept, with the prompt; missing if no prompt names a
            concept.
    """
    texts = [prompt.text for prompt in prompts]
    with_concept = [i for i, prompt in enumerate(prompts) if prompt.concepts]
    scores = {
        "clip_score": scorer.score(images, texts),
        "clip_floor": scorer.score(images, [*texts[2:], *texts[:2]]),
    }
    if with_concept:
        clean = np.stack([_clean_image(gallery, prompts[i]) for i in with_concept])
        scores["clip_ceiling"] = scorer.score(clean, [texts[i] for i in with_concept])
    return {name: Mean.from_scores(values) for name, values in scores.items()}


def _clean_image(gallery: Gallery, prompt: Prompt) -> np.ndarray:
    """The first clean image (32, 32, 3) uint8 of a prompt's concept and style, on its background."""
    index = next(
        i
        for i, entry in enumerate(gallery.entries)
        if entry.hexcode in prompt.concepts
        and (prompt.style in (None, entry.style) or _lacks_style(gallery, prompt))
    )
    flat = torch.tensor(gallery.backgrounds[prompt.background or WHITE])[:, None, None] / 255.0
    pixels = gallery.pixels[index, :3] + flat * (1.0 - gallery.pixels[index, 3:])
    clean: np.ndarray = (255.0 * pixels).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return clean


def _lacks_style(gallery: Gallery, prompt: Prompt) -> bool:
    """Whether the gallery has no concept of a prompt in the prompt's style."""
    return not any(
        entry.hexcode in prompt.concepts and entry.style == prompt.style for entry in gallery.entries
    )
