"""The gallery: small copies of a model's clean training images, with which generated images are compared.

`gallery.webp` holds every render at 32x32 with its opacity, `gallery.json` describes them. Pooling and
compositing are both linear, so a small render on a background equals the pooled image on that background.

Shapes: P clean images, B generated images.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight.models.checkpoints.json_files import CheckpointError

SIDE = 32
COLUMNS = 70
MAX_DUPLICATE_RMS = 0.04  # root-mean-square difference of colours in [0, 1]: 28 dB
IMAGES_FILE, ENTRIES_FILE = "gallery.webp", "gallery.json"

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class GalleryEntry:
    """One clean image: what it shows, and how it was used in training."""

    hexcode: str  # of the concept
    label: str
    keywords: tuple[str, ...]
    style: str
    held_out: bool  # this (concept, style) was never shown to the denoiser
    restored: bool  # its nearest clean image still has this concept after the autoencoder: the ceiling


@dataclass(frozen=True)
class Gallery:
    """All clean images of a model, and its backgrounds."""

    entries: tuple[GalleryEntry, ...]
    pixels: Tensor  # (P, 4, 32, 32) in [0, 1], colour times opacity
    backgrounds: dict[str, Colour]  # by their name in prompts

    @classmethod
    def load(cls, folder: Path) -> "Gallery":
        """Load the gallery beside a checkpoint's weights; raise `CheckpointError` if there is none."""
        try:
            record = json.loads((folder / ENTRIES_FILE).read_text())
            sheet = np.asarray(Image.open(folder / IMAGES_FILE).convert("RGBA"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder}: there is no gallery of clean images to compare with ({Path(error.filename).name})"
            ) from None
        entries = tuple(
            GalleryEntry(**{**fields, "keywords": tuple(fields["keywords"])}) for fields in record["entries"]
        )
        tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 4).transpose(0, 2, 4, 1, 3).reshape(-1, 4, SIDE, SIDE)
        backgrounds = {name: (red, green, blue) for name, (red, green, blue) in record["backgrounds"].items()}
        return cls(entries, torch.from_numpy(tiles[: len(entries)].copy()).float() / 255.0, backgrounds)

    def save(self, folder: Path) -> None:
        """Write both files into `folder`."""
        rows = -(-len(self.entries) // COLUMNS)
        tiles = np.zeros((rows * COLUMNS, 4, SIDE, SIDE), np.uint8)
        tiles[: len(self.entries)] = (self.pixels * 255.0).round().to(torch.uint8).numpy()
        sheet = (
            tiles.reshape(rows, COLUMNS, 4, SIDE, SIDE)
            .transpose(0, 3, 1, 4, 2)
            .reshape(rows * SIDE, COLUMNS * SIDE, 4)
        )
        Image.fromarray(np.ascontiguousarray(sheet), "RGBA").save(
            folder / IMAGES_FILE, lossless=True, exact=True, quality=100, method=6
        )
        record = {"backgrounds": self.backgrounds, "entries": [asdict(entry) for entry in self.entries]}
        (folder / ENTRIES_FILE).write_text(json.dumps(record))

    def points(self, background: str) -> Tensor:
        """Every clean image on a background, as points (P, 3 * 32 * 32) in [0, 1]."""
        flat = torch.tensor(self.backgrounds[background])[:, None, None] / 255.0
        return (self.pixels[:, :3] + flat * (1.0 - self.pixels[:, 3:])).flatten(1)

    def nearest(self, images: np.ndarray, background: str, num: int = 1) -> list[list[int]]:
        """Return the indices of each image's `num` nearest clean images on `background`, nearest first.

        `images` are (B, H, W, 3) uint8. A gallery with fewer than `num` images gives fewer indices.
        The distance is Euclidean between colours in [0, 1], pooled to 32x32. It was fixed before any result
        was seen.
        """
        distances = torch.cdist(pool_images(images), self.points(background))
        indices: list[list[int]] = distances.topk(min(num, len(self.entries)), largest=False).indices.tolist()
        return indices

    @cached_property
    def concept_groups(self) -> tuple[str, ...]:
        """The concept of every clean image; indistinguishable concepts share the hexcode of the first.

        Two concepts are indistinguishable when their clean images differ by less than `MAX_DUPLICATE_RMS` in
        every style that both have.
        """
        hexcodes = list(dict.fromkeys(entry.hexcode for entry in self.entries))
        index = {hexcode: i for i, hexcode in enumerate(hexcodes)}
        largest_distance = torch.full((len(hexcodes), len(hexcodes)), -1.0)
        points = self.points("white")
        for style in dict.fromkeys(entry.style for entry in self.entries):
            rows = [i for i, entry in enumerate(self.entries) if entry.style == style]
            concepts = torch.tensor([index[self.entries[i].hexcode] for i in rows])
            distance = torch.cdist(points[rows], points[rows]) / points.shape[1] ** 0.5
            block = (concepts[:, None], concepts[None])
            largest_distance[block] = torch.maximum(largest_distance[block], distance)
        first = list(range(len(hexcodes)))
        is_duplicate = (largest_distance >= 0.0) & (largest_distance < MAX_DUPLICATE_RMS)
        for i, j in is_duplicate.nonzero().tolist():
            first[max(i, j)] = min(first[i], first[j], first[max(i, j)])
        return tuple(hexcodes[first[index[entry.hexcode]]] for entry in self.entries)


def pool_images(images: np.ndarray) -> Tensor:
    """Pool the middle square of images (B, H, W, 3) uint8 to points (B, 3 * 32 * 32) in [0, 1]."""
    height, width = images.shape[1:3]
    side = min(height, width)
    min_y, min_x = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(images[:, min_y : min_y + side, min_x : min_x + side])
    x = torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255.0
    return F.adaptive_avg_pool2d(x, SIDE).flatten(1)


def shrink_renders(renders: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """Shrink images (H, W, 4) uint8 with straight opacity to `Gallery.pixels`, (P, 4, 32, 32)."""
    tiles = []
    for rgba in renders:
        x = torch.from_numpy(np.array(rgba)).permute(2, 0, 1).float() / 255.0
        x[:3] *= x[3:]
        tiles.append(F.adaptive_avg_pool2d(x, SIDE))
    return torch.stack(tiles)
