"""The clean images that a model was taught, small: what drawn images are judged against.

`gallery.webp` holds every render at 32x32 with its opacity, `gallery.json` what each one is. Pooling and compositing are both
linear, so a small image put on a background is the pooled image on that background.
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
SAME = 0.04  # root-mean-square difference, of a range of 1: 28 dB
IMAGES, ENTRIES = "gallery.webp", "gallery.json"

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class GalleryEntry:
    """One clean image: what it shows, and what was kept from the model."""

    hexcode: str  # of the concept
    label: str
    keywords: tuple[str, ...]
    style: str
    held_out: bool  # this (concept, style) was never shown to the denoiser
    restored: bool  # after a trip through the autoencoder the judge still finds this concept: the ceiling


@dataclass(frozen=True)
class Gallery:
    """All clean images: `pixels` (P, 4, 32, 32) in [0, 1], colour times opacity, and `backgrounds` by their name in prompts."""

    entries: tuple[GalleryEntry, ...]
    pixels: Tensor
    backgrounds: dict[str, Colour]

    @classmethod
    def load(cls, folder: Path) -> "Gallery":
        """The gallery beside a checkpoint's weights; `CheckpointError` if there is none."""
        try:
            record = json.loads((folder / ENTRIES).read_text())
            sheet = np.asarray(Image.open(folder / IMAGES).convert("RGBA"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder}: there is no gallery of clean images to judge against ({Path(error.filename).name})"
            ) from None
        entries = tuple(
            GalleryEntry(**{**fields, "keywords": tuple(fields["keywords"])}) for fields in record["entries"]
        )
        tiles = sheet.reshape(-1, SIDE, COLUMNS, SIDE, 4).transpose(0, 2, 4, 1, 3).reshape(-1, 4, SIDE, SIDE)
        backgrounds = {name: (red, green, blue) for name, (red, green, blue) in record["backgrounds"].items()}
        return cls(entries, torch.from_numpy(tiles[: len(entries)].copy()).float() / 255.0, backgrounds)

    def save(self, folder: Path) -> None:
        """Write both files."""
        rows = -(-len(self.entries) // COLUMNS)
        tiles = np.zeros((rows * COLUMNS, 4, SIDE, SIDE), np.uint8)
        tiles[: len(self.entries)] = (self.pixels * 255.0).round().to(torch.uint8).numpy()
        sheet = (
            tiles.reshape(rows, COLUMNS, 4, SIDE, SIDE)
            .transpose(0, 3, 1, 4, 2)
            .reshape(rows * SIDE, COLUMNS * SIDE, 4)
        )
        Image.fromarray(np.ascontiguousarray(sheet), "RGBA").save(
            folder / IMAGES, lossless=True, exact=True, quality=100, method=6
        )
        record = {"backgrounds": self.backgrounds, "entries": [asdict(entry) for entry in self.entries]}
        (folder / ENTRIES).write_text(json.dumps(record))

    def points(self, background: str) -> Tensor:
        """Every image on a background as a point (P, 3 * 32 * 32)."""
        flat = torch.tensor(self.backgrounds[background])[:, None, None] / 255.0
        return (self.pixels[:, :3] + flat * (1.0 - self.pixels[:, 3:])).flatten(1)

    def nearest(self, drawn: np.ndarray, background: str, num: int = 1) -> list[list[int]]:
        """The numbers of the `num` nearest clean images on `background` of each drawn one (B, H, W, 3) uint8, nearest first;
        fewer where there are fewer.

        Euclidean between colours in [0, 1], pooled to 32x32; fixed before any result was looked at.
        """
        apart = torch.cdist(pooled(drawn), self.points(background))
        found: list[list[int]] = apart.topk(min(num, len(self.entries)), largest=False).indices.tolist()
        return found

    @cached_property
    def group(self) -> tuple[str, ...]:
        """The concept of every image, by the hexcode of the first of those that nobody could tell apart.

        Two concepts are one when their clean images differ by less than `SAME` in every style that both have.
        """
        hexcodes = list(dict.fromkeys(entry.hexcode for entry in self.entries))
        number = {hexcode: i for i, hexcode in enumerate(hexcodes)}
        widest = torch.full((len(hexcodes), len(hexcodes)), -1.0)
        points = self.points("white")
        for style in dict.fromkeys(entry.style for entry in self.entries):
            rows = [i for i, entry in enumerate(self.entries) if entry.style == style]
            which = torch.tensor([number[self.entries[i].hexcode] for i in rows])
            apart = torch.cdist(points[rows], points[rows]) / points.shape[1] ** 0.5
            block = (which[:, None], which[None])
            widest[block] = torch.maximum(widest[block], apart)
        first = list(range(len(hexcodes)))
        for i, j in ((widest >= 0.0) & (widest < SAME)).nonzero().tolist():
            first[max(i, j)] = min(first[i], first[j], first[max(i, j)])
        return tuple(hexcodes[first[number[entry.hexcode]]] for entry in self.entries)


def pooled(drawn: np.ndarray) -> Tensor:
    """Images (B, H, W, 3) uint8, of those that are not square the middle, as points (B, 3 * 32 * 32)."""
    height, width = drawn.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = np.ascontiguousarray(drawn[:, top : top + side, left : left + side])
    x = torch.from_numpy(middle).permute(0, 3, 1, 2).float() / 255.0
    return F.adaptive_avg_pool2d(x, SIDE).flatten(1)


def small(rgba: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """Images (H, W, 4) uint8, straight opacity, as `Gallery.pixels` holds them: (P, 4, 32, 32)."""
    tiles = []
    for image in rgba:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0
        x[:3] *= x[3:]
        tiles.append(F.adaptive_avg_pool2d(x, SIDE))
    return torch.stack(tiles)
