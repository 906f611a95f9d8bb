"""Stage `export`: the trained parts as one diffusers-layout folder in bfloat16, ready to commit and to serve."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, WEIGHTS
from safelight.models.checkpoints.writer import FLOW_SCHEDULER, write_clip, write_index, write_part
from safelight.models.evaluation.gallery import Gallery, GalleryEntry, small
from safelight.models.recipes.emoji import data, dit, prompts, text
from safelight.models.recipes.emoji.captions import COLOURS, WHITE
from safelight.models.vae import decode_latents, encode_pixels, load_vae

BATCH = 16
SCHEDULER = FLOW_SCHEDULER | {
    "flow_shift": 2.0
}  # what an image shows is decided early, where a grid even in time has few steps


def run(work: Path, output: Path) -> None:
    """Gather `work`'s text tower, autoencoder, DiT and, once it is trained, scorer into `output`.

    Of the DiT the weights themselves: once the learning rate has decayed, their average lags behind them (31 % against 27 %
    of 150 names at the same step).
    """
    output.mkdir(parents=True, exist_ok=True)
    for which in (
        (text.CONDITIONING, text.SCORER) if (work / text.SCORER.folder).exists() else (text.CONDITIONING,)
    ):
        clip = _bfloat16(load_file(work / which.folder / CLIP_WEIGHTS))
        write_clip(output / which.folder, text.EMBED_DIM, which.vision, text.TEXT, clip)
    vae_config = json.loads((work / "vae" / "config.json").read_text())
    write_part(output / "vae", vae_config, _bfloat16(load_file(work / "vae" / WEIGHTS)))
    state = torch.load(dit.latest(work), weights_only=True)
    trained = {name.removeprefix("dit."): tensor for name, tensor in state["module"].items()}
    write_part(output / "transformer", dit.CONFIG.to_diffusers(), _bfloat16(trained))
    write_index(output, SCHEDULER)
    make_gallery(work, output).save(output)
    prompts.run(work, output)
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    print(f"export: {output}, {size / 1e6:.1f} MB, DiT after {state['step']} steps")


def make_gallery(work: Path, output: Path) -> Gallery:
    """Every clean image, small, and whether it is still found after a trip through `output`'s autoencoder."""
    dataset = data.load(work)
    entries = tuple(
        GalleryEntry(
            p.concept.hexcode,
            p.concept.label,
            p.concept.keywords,
            p.style,
            p.held_out_from_dit,
            restored=False,
        )
        for p in dataset.images
    )
    gallery = Gallery(entries, small(dataset.rgba), COLOURS)
    vae = load_vae(output / "vae", "cpu", torch.float32)
    found: list[bool] = []
    for start in track(range(0, len(entries), BATCH), description="gallery"):
        numbers = range(start, min(start + BATCH, len(entries)))
        clean = torch.from_numpy(np.stack([dataset.on_background(i) for i in numbers])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            restored = decode_latents(vae, encode_pixels(vae, clean.float() / 127.5 - 1.0))
        pixels = ((restored + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        found += [
            gallery.group[near[0]] == gallery.group[i]
            for i, near in zip(numbers, gallery.nearest(pixels, WHITE), strict=True)
        ]
    return replace(
        gallery,
        entries=tuple(
            replace(entry, restored=is_found) for entry, is_found in zip(entries, found, strict=True)
        ),
    )


def _bfloat16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
