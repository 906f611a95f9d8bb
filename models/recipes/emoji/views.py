"""What the DiT learns from: latents of images on backgrounds, computed once a size by the frozen autoencoder.

Images and backgrounds that are held out by rule are left out here, so nothing behind this module can see them.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import COLOURS, WHITE
from safelight.models.vae import AutoencoderTiny

NATIVE = (data.SIZE, data.SIZE)
OTHERS = ((96, 96), (160, 96), (96, 160))  # width, height
COLOURS_SEEN = {NATIVE: 3} | dict.fromkeys(
    OTHERS, 1
)  # besides white, of eight: the others have to be put together
NAMES = tuple(COLOURS)
BATCH = 16


@dataclass(frozen=True, slots=True)
class Views:
    """`latents` (V, C, h, w) bfloat16; of each the number of its image (V,), and of its background in `NAMES` (V,)."""

    latents: Tensor
    image: Tensor
    colour: Tensor


def load(work: Path, dataset: data.Dataset, size: tuple[int, int], seed: int) -> Views:
    """The views of one size, from the cache in `work` or made for it."""
    cache = work / f"views-{size[0]}x{size[1]}-{_digest(work, seed)}.pt"
    if not cache.exists():
        torch.save(_make(work, dataset, size, seed), cache)
    return Views(**torch.load(cache, weights_only=True))


def placed(rgba: np.ndarray, size: tuple[int, int], colour: tuple[int, int, int]) -> np.ndarray:
    """An image (128, 128, 4) scaled to the shorter side of `size` (width, height), in the middle of a plain background: (H, W, 3)."""
    flat = data.composite(rgba, colour)
    if size == NATIVE:
        return flat
    width, height = size
    side = min(size)
    canvas = np.full((height, width, 3), colour, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    canvas[top : top + side, left : left + side] = np.asarray(
        Image.fromarray(flat).resize((side, side), Image.Resampling.LANCZOS)
    )
    return canvas


def _make(work: Path, dataset: data.Dataset, size: tuple[int, int], seed: int) -> dict[str, Tensor]:
    vae = AutoencoderTiny.from_pretrained(work / "vae").eval().to(memory_format=torch.channels_last)
    chosen = _choose(dataset, COLOURS_SEEN[size], seed)
    latents = []
    with torch.inference_mode():
        for start in track(range(0, len(chosen), BATCH), description=f"views of {size[0]}x{size[1]}"):
            pixels = np.stack(
                [placed(dataset.rgba[i], size, COLOURS[NAMES[c]]) for i, c in chosen[start : start + BATCH]]
            )
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            latents.append((vae.encode(x).latents * vae.config.scaling_factor).bfloat16())
    image, colour = torch.tensor(chosen).unbind(1)
    return {"latents": torch.cat(latents), "image": image.clone(), "colour": colour.clone()}


def _choose(dataset: data.Dataset, num_colours: int, seed: int) -> list[tuple[int, int]]:
    """(image, colour) numbers: every image on white, and on `num_colours` others."""
    rng = random.Random(seed)
    chosen = []
    for index, image in enumerate(dataset.images):
        allowed = [c for c, name in enumerate(NAMES) if name != WHITE and image.shown_on(name)]
        colours = [NAMES.index(WHITE), *rng.sample(allowed, num_colours)]
        if not image.held_out_from_dit:
            chosen += [(index, colour) for colour in colours]
    return chosen


def _digest(work: Path, seed: int) -> str:
    """Names the cache by all that it depends on, so that a retrained autoencoder is never met with old latents."""
    digest = hashlib.sha256(f"{seed}/{COLOURS}/{COLOURS_SEEN}".encode())
    digest.update((work / "vae" / WEIGHTS).read_bytes())
    return digest.hexdigest()[:12]
