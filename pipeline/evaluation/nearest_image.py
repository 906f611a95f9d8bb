"""From drawn images to rates: what the nearest clean image shows, with intervals, a ceiling and a floor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safelight.models.evaluation.gallery import Gallery
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.evaluation.prompts import InvalidPrompts, Prompt

WHITE = "white"
FRAME = 3  # pixels at the edge that show the background
TOP = 5


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `count`, and the 95 % interval of the share by Wilson (1927)."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        n, p, z = self.count, self.share, 1.96
        middle, half = (
            (p + z * z / (2 * n)) / (1 + z * z / n),
            z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
        )
        return max(0.0, middle - half), min(1.0, middle + half)

    def as_dict(self) -> dict[str, float]:
        """For JSON: hits, count, rate, and the ends of the interval."""
        low, high = self.interval
        return {
            "hits": self.hits,
            "count": self.count,
            "rate": round(self.share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }

    def as_text(self) -> str:
        """For people."""
        low, high = self.interval
        return f"{self.share:6.1%}  ({low:.1%} to {high:.1%}; {self.hits} of {self.count})"

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Rate":
        return cls(sum(hits), len(hits))


def load_gallery(model: ModelInfo) -> Gallery:
    """The clean images that `model` was taught; raises `CheckpointError` (a `ValueError`) for a model that brings none."""
    return Gallery.load(model.path)


def judge(gallery: Gallery, prompts: Sequence[Prompt], drawn: np.ndarray) -> dict[str, Rate]:
    """What was drawn (P, H, W, 3) uint8 for `prompts`, by name of figure; figures that no prompt asks about are left out.

    `concept_top1`, `concept_top5`: one of the prompt's concepts is the nearest clean image's, or among the five nearest.
    `style_accuracy`: the nearest image's style. `concept_and_style`: both. `background_accuracy`: the frame's colour.
    `ceiling`: `concept_top1` of true images after a trip through the autoencoder. `floor`: `concept_top1` of the same
    images against the prompt after next: what is right by chance. Raises `InvalidPrompts` for names that the gallery has not.
    """
    check(gallery, prompts)
    nearest = _nearest(gallery, prompts, drawn)
    groups = [_groups(gallery, prompt) for prompt in prompts]
    named = [i for i, prompt in enumerate(prompts) if prompt.concepts]
    styled = [i for i, prompt in enumerate(prompts) if prompt.style]
    top1 = {i: gallery.group[nearest[i][0]] in groups[i] for i in named}
    in_style = {i: gallery.entries[nearest[i][0]].style == prompts[i].style for i in styled}
    found = {
        "concept_top1": [*top1.values()],
        "concept_top5": [any(gallery.group[number] in groups[i] for number in nearest[i]) for i in named],
        "style_accuracy": [*in_style.values()],
        "concept_and_style": [top1[i] and in_style[i] for i in named if i in in_style],
        "background_accuracy": [
            framed(gallery, drawn[i]) == p.background for i, p in enumerate(prompts) if p.background
        ],
        "ceiling": [_restored(gallery, prompts[i]) for i in named],
        "floor": [
            gallery.group[nearest[i][0]] in groups[other]
            for i, other in zip(named, [*named[2:], *named[:2]], strict=True)
        ],
    }
    return {name: Rate.of(hits) for name, hits in found.items() if hits}


def check(gallery: Gallery, prompts: Sequence[Prompt]) -> None:
    """Raise `InvalidPrompts` for the first prompt that names what the gallery has not."""
    known = {
        "concept": {e.hexcode for e in gallery.entries},
        "style": {e.style for e in gallery.entries},
        "background": {*gallery.backgrounds},
    }
    for prompt in prompts:
        asked = {"concept": prompt.concepts, "style": (prompt.style,), "background": (prompt.background,)}
        for name, values in asked.items():
            for value in values:
                if value is not None and value not in known[name]:
                    allowed = (
                        "a hexcode of the gallery" if name == "concept" else ", ".join(sorted(known[name]))
                    )
                    raise InvalidPrompts(
                        f"prompt {prompt.text!r}: {name} {value!r} is unknown; allowed: {allowed}"
                    )


def framed(gallery: Gallery, image: np.ndarray) -> str:
    """The name of the background nearest to the middle colour of an image's frame."""
    edge = np.ones(image.shape[:2], bool)
    edge[FRAME:-FRAME, FRAME:-FRAME] = False
    colour = np.median(image[edge], axis=0)
    return min(
        gallery.backgrounds, key=lambda name: float(np.square(colour - gallery.backgrounds[name]).sum())
    )


def _nearest(gallery: Gallery, prompts: Sequence[Prompt], drawn: np.ndarray) -> list[list[int]]:
    """Each image's nearest clean ones on the background that it should have."""
    found: list[list[int]] = [[] for _ in prompts]
    for background in {prompt.background or WHITE for prompt in prompts}:
        rows = [i for i, prompt in enumerate(prompts) if (prompt.background or WHITE) == background]
        for i, numbers in zip(rows, gallery.nearest(drawn[rows], background, TOP), strict=True):
            found[i] = numbers
    return found


def _groups(gallery: Gallery, prompt: Prompt) -> set[str]:
    return {
        group
        for group, entry in zip(gallery.group, gallery.entries, strict=True)
        if entry.hexcode in prompt.concepts
    }


def _restored(gallery: Gallery, prompt: Prompt) -> bool:
    """Whether a true image of what is asked for would be recognised."""
    return any(
        e.restored
        for e in gallery.entries
        if e.hexcode in prompt.concepts and prompt.style in (None, e.style)
    )
