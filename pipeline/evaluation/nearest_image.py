"""Rate generated images by the nearest clean image of the gallery, with intervals, a ceiling and a floor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safelight.models.evaluation.gallery import Gallery
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.evaluation.prompts import InvalidPrompts, Prompt

WHITE = "white"
FRAME_WIDTH = 3  # pixels at each edge that show the background
TOP = 5  # nearest images that are compared


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of `hits` in `count`, with the 95 % interval of Wilson (1927)."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        n, p, z = self.count, self.share, 1.96
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half_width), min(1.0, centre + half_width)

    def as_dict(self) -> dict[str, float]:
        """The rate as a JSON object."""
        low, high = self.interval
        return {
            "hits": self.hits,
            "count": self.count,
            "rate": round(self.share, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }

    def as_text(self) -> str:
        """The rate as text."""
        low, high = self.interval
        return f"{self.share:6.1%}  ({low:.1%} to {high:.1%}; {self.hits} of {self.count})"

    @classmethod
    def from_hits(cls, hits: Sequence[bool]) -> "Rate":
        return cls(sum(hits), len(hits))


def load_gallery(model: ModelInfo) -> Gallery:
    """Load the gallery of `model`; raise `CheckpointError`, a `ValueError`, for a model without one."""
    return Gallery.load(model.path)


def rate_images(gallery: Gallery, prompts: Sequence[Prompt], images: np.ndarray) -> dict[str, Rate]:
    """Rate generated images (P, H, W, 3) uint8, one for each prompt.

    Rates that no prompt asks about are left out.

    Returns:
        `concept_top1`: the nearest clean image is of one of the prompt's concepts.
        `concept_top5`: one of the five nearest clean images is.
        `style_accuracy`: the nearest clean image has the prompt's style.
        `concept_and_style`: it has both.
        `background_accuracy`: the image's frame has the colour of the prompt's background.
        `ceiling`: `concept_top1` of clean images after the autoencoder.
        `floor`: `concept_top1` of the generated images against the prompt after next, so by chance.

    Raises:
        InvalidPrompts: a prompt names a concept, style or background that the gallery does not have.
    """
    check_prompts(gallery, prompts)
    nearest = _nearest(gallery, prompts, images)
    groups = [_concept_groups(gallery, prompt) for prompt in prompts]
    with_concept = [i for i, prompt in enumerate(prompts) if prompt.concepts]
    with_style = [i for i, prompt in enumerate(prompts) if prompt.style]
    top1 = {i: gallery.concept_groups[nearest[i][0]] in groups[i] for i in with_concept}
    in_style = {i: gallery.entries[nearest[i][0]].style == prompts[i].style for i in with_style}
    hits_by_name = {
        "concept_top1": [*top1.values()],
        "concept_top5": [
            any(gallery.concept_groups[index] in groups[i] for index in nearest[i]) for i in with_concept
        ],
        "style_accuracy": [*in_style.values()],
        "concept_and_style": [top1[i] and in_style[i] for i in with_concept if i in in_style],
        "background_accuracy": _background_hits(gallery, prompts, images),
        "ceiling": [_is_restored(gallery, prompts[i]) for i in with_concept],
        "floor": [
            gallery.concept_groups[nearest[i][0]] in groups[j]
            for i, j in zip(with_concept, [*with_concept[2:], *with_concept[:2]], strict=True)
        ],
    }
    return {name: Rate.from_hits(hits) for name, hits in hits_by_name.items() if hits}


def _background_hits(gallery: Gallery, prompts: Sequence[Prompt], images: np.ndarray) -> list[bool]:
    """Whether the frame has the background of the prompt, for each prompt that names one."""
    return [
        frame_background(gallery, image) == prompt.background
        for image, prompt in zip(images, prompts, strict=True)
        if prompt.background
    ]


def check_prompts(gallery: Gallery, prompts: Sequence[Prompt]) -> None:
    """Raise `InvalidPrompts` for the first prompt that names something the gallery does not have."""
    allowed_names = {
        "concept": {e.hexcode for e in gallery.entries},
        "style": {e.style for e in gallery.entries},
        "background": {*gallery.backgrounds},
    }
    for prompt in prompts:
        names = {"concept": prompt.concepts, "style": (prompt.style,), "background": (prompt.background,)}
        for name, values in names.items():
            for value in values:
                if value is not None and value not in allowed_names[name]:
                    allowed = (
                        "a hexcode of the gallery"
                        if name == "concept"
                        else ", ".join(sorted(allowed_names[name]))
                    )
                    raise InvalidPrompts(
                        f"prompt {prompt.text!r}: {name} {value!r} is unknown; allowed: {allowed}"
                    )


def frame_background(gallery: Gallery, image: np.ndarray) -> str:
    """The name of the background nearest to the median colour of an image's frame."""
    edge = np.ones(image.shape[:2], bool)
    edge[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = False
    colour = np.median(image[edge], axis=0)
    return min(
        gallery.backgrounds, key=lambda name: float(np.square(colour - gallery.backgrounds[name]).sum())
    )


def _nearest(gallery: Gallery, prompts: Sequence[Prompt], images: np.ndarray) -> list[list[int]]:
    """The indices of each image's nearest clean images, on the background that its prompt names."""
    nearest: list[list[int]] = [[] for _ in prompts]
    for background in {prompt.background or WHITE for prompt in prompts}:
        rows = [i for i, prompt in enumerate(prompts) if (prompt.background or WHITE) == background]
        for i, indices in zip(rows, gallery.nearest(images[rows], background, TOP), strict=True):
            nearest[i] = indices
    return nearest


def _concept_groups(gallery: Gallery, prompt: Prompt) -> set[str]:
    return {
        group
        for group, entry in zip(gallery.concept_groups, gallery.entries, strict=True)
        if entry.hexcode in prompt.concepts
    }


def _is_restored(gallery: Gallery, prompt: Prompt) -> bool:
    """Whether a clean image of the prompt's concept is still recognised after the autoencoder."""
    return any(
        e.restored
        for e in gallery.entries
        if e.hexcode in prompt.concepts and prompt.style in (None, e.style)
    )
