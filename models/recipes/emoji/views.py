"""Training data of the DiT: latents of images on backgrounds, encoded once for each size.

Held-out images and backgrounds are left out here, so no later stage can see them.

Shapes: V views, C latent channels, h x w latent pixels, H x W pixels.
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

from safelight.models.autoencoders.interface import encode_pixels
from safelight.models.autoencoders.loading import load_vae
from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import COLOURS, WHITE

NATIVE = (data.SIZE, data.SIZE)
OTHERS = ((96, 96), (160, 96), (96, 160))  # width, height
# Backgrounds of each image besides white, out of eight; the DiT must generalise to the others.
NUM_COLOURS = {NATIVE: 3} | dict.fromkeys(OTHERS, 1)
NAMES = tuple(COLOURS)
BATCH = 16


@dataclass(frozen=True, slots=True)
class Views:
    """Latents (V, C, h, w) bfloat16, with indices (V,) of their images and of their colours in `NAMES`."""

    latents: Tensor
    image: Tensor
    colour: Tensor


def load(work: Path, dataset: data.Dataset, size: tuple[int, int], seed: int) -> Views:
    """Load the views of one size (width, height) from the cache in `work`, or make them."""
    cache = work / f"views-{size[0]}x{size[1]}-{_digest(work, seed)}.pt"
    if not cache.exists():
        torch.save(_make(work, dataset, size, seed), cache)
    return Views(**torch.load(cache, weights_only=True))


def placed(rgba: np.ndarray, size: tuple[int, int], colour: tuple[int, int, int]) -> np.ndarray:
    """Scale an image (128, 128, 4) to the shorter side of `size` (width, height), centred on a background.

    Returns (H, W, 3) uint8.
    """
    flat = data.composite(rgba, colour)
    if size == NATIVE:
        return flat
    width, height = size
    side = min(size)
    canvas = np.full((height, width, 3), colour, np.uint8)
    min_y, min_x = (height - side) // 2, (width - side) // 2
    canvas[min_y : min_y + side, min_x : min_x + side] = np.asarray(
        Image.fromarray(flat).resize((side, side), Image.Resampling.LANCZOS)
    )
    return canvas


def _make(work: Path, dataset: data.Dataset, size: tuple[int, int], seed: int) -> dict[str, Tensor]:
    vae = load_vae(work / "vae", "cpu", torch.float32).to(memory_format=torch.channels_last)
    pairs = _select_views(dataset, NUM_COLOURS[size], seed)
    latents = []
    with torch.inference_mode():
        for start in track(range(0, len(pairs), BATCH), description=f"views of {size[0]}x{size[1]}"):
            pixels = np.stack(
                [placed(dataset.rgba[i], size, COLOURS[NAMES[c]]) for i, c in pairs[start : start + BATCH]]
            )
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            latents.append(encode_pixels(vae, x).bfloat16())
    image, colour = torch.tensor(pairs).unbind(1)
    return {"latents": torch.cat(latents), "image": image.clone(), "colour": colour.clone()}


def _select_views(dataset: data.Dataset, num_colours: int, seed: int) -> list[tuple[int, int]]:
    """Indices (image, colour): every training image on white and on `num_colours` other backgrounds."""
    rng = random.Random(seed)
    pairs = []
    for index, image in enumerate(dataset.images):
        allowed = [c for c, name in enumerate(NAMES) if name != WHITE and image.shown_on(name)]
        colours = [NAMES.index(WHITE), *rng.sample(allowed, num_colours)]
        if not image.held_out_from_dit:
            pairs += [(index, colour) for colour in colours]
    return pairs


def _digest(work: Path, seed: int) -> str:
    """A digest of all that the views depend on, so that a retrained autoencoder never meets old latents."""
    digest = hashlib.sha256(f"{seed}/{COLOURS}/{NUM_COLOURS}".encode())
    digest.update((work / "vae" / WEIGHTS).read_bytes())
    return digest.hexdigest()[:12]
