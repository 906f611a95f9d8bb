"""Training data of the DiT: latents of images on backgrounds, encoded once for each size.

Held-out images and backgrounds are left out here, so no later stage can see them.

Shapes: V views, C latent channels, h x w latent pixels, H x W pixels.
"""

import hashlib
import random
from collections.abc import Sequence
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
from safelight.pipeline.assembly.device import fast_device

NATIVE = (data.SIZE, data.SIZE)
OTHERS = ((96, 96), (160, 96), (96, 160), (192, 192))  # width, height
# Backgrounds of each image besides white, out of eight, on average; the DiT must generalise to the others.
NUM_COLOURS = {NATIVE: 1.0} | dict.fromkeys(OTHERS, 0.25)
NAMES = tuple(COLOURS)
BATCH = 16
PART = 512  # views in a part, after which an interrupted stage resumes


@dataclass(frozen=True, slots=True)
class Views:
    """Latents (V, C, h, w) bfloat16, with indices (V,) of their images and of their colours in `NAMES`."""

    latents: Tensor
    image: Tensor
    colour: Tensor


def run(work: Path, seed: int = 0) -> None:
    """Make the views of all sizes; an interrupted run resumes after its last part."""
    dataset = data.load(work)
    for size in (NATIVE, *OTHERS):
        num_views = len(load(work, dataset, size, seed).latents)
        print(f"views: {num_views} of {size[0]}x{size[1]}", flush=True)


def load(work: Path, dataset: data.Dataset, size: tuple[int, int], seed: int) -> Views:
    """Load the views of one size (width, height) from the cache in `work`, or make them."""
    cache = work / f"views-{size[0]}x{size[1]}-{_digest(work, seed)}.pt"
    if not cache.exists():
        _save(_make(work, dataset, size, seed, cache), cache)
        for part in work.glob(f"{cache.stem}.part-*"):
            part.unlink()
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


def _make(
    work: Path, dataset: data.Dataset, size: tuple[int, int], seed: int, cache: Path
) -> dict[str, Tensor]:
    """Make the views of one size, in parts that are kept beside `cache` until all are there."""
    pairs = _select_views(dataset, NUM_COLOURS[size], seed)
    parts = []
    for start in range(0, len(pairs), PART):
        file = cache.with_suffix(f".part-{start:06d}")
        if not file.exists():
            _save(encode(work, dataset, pairs[start : start + PART], size), file)
        parts.append(torch.load(file, weights_only=True))
    image, colour = torch.tensor(pairs).unbind(1)
    return {"latents": torch.cat(parts), "image": image.clone(), "colour": colour.clone()}


def _save(content: Tensor | dict[str, Tensor], file: Path) -> None:
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(file)  # an interruption never leaves half a file


def encode(
    work: Path, dataset: data.Dataset, pairs: Sequence[tuple[int, int]], size: tuple[int, int] = NATIVE
) -> Tensor:
    """Latents (V, C, h, w) bfloat16 of images on backgrounds, given as indices (image, colour)."""
    device = fast_device()
    vae = load_vae(work / "vae", device.type, torch.float32).to(memory_format=torch.channels_last)
    latents = []
    with torch.inference_mode():
        for start in track(range(0, len(pairs), BATCH), description=f"views of {size[0]}x{size[1]}"):
            pixels = np.stack(
                [placed(dataset.rgba[i], size, COLOURS[NAMES[c]]) for i, c in pairs[start : start + BATCH]]
            )
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1.0
            latents.append(encode_pixels(vae, x).bfloat16().cpu())
    return torch.cat(latents).clone()  # made in inference mode: a copy can be trained on


def _select_views(dataset: data.Dataset, num_colours: float, seed: int) -> list[tuple[int, int]]:
    """Indices (image, colour): every training image on white and on `num_colours` other backgrounds.

    A fraction is the share of images that have one more.
    """
    rng = random.Random(seed)
    pairs = []
    for index, image in enumerate(dataset.images):
        allowed = [c for c, name in enumerate(NAMES) if name != WHITE and image.shown_on(name)]
        num = int(num_colours) + (rng.random() < num_colours % 1)
        colours = [NAMES.index(WHITE), *rng.sample(allowed, num)]
        if not image.held_out_from_dit:
            pairs += [(index, colour) for colour in colours]
    return pairs


def _digest(work: Path, seed: int) -> str:
    """A digest of all that the views depend on, so that a retrained autoencoder never meets old latents."""
    digest = hashlib.sha256(f"{seed}/{COLOURS}/{NUM_COLOURS}".encode())
    digest.update((work / "vae" / WEIGHTS).read_bytes())
    return digest.hexdigest()[:12]
