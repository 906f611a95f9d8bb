"""Stage `export`: write the trained parts as one diffusers-layout folder in bfloat16, ready to serve."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from safelight.models.autoencoders.interface import decode_latents, encode_pixels
from safelight.models.autoencoders.loading import load_vae
from safelight.models.checkpoints.compact_embedding import compact_embedding
from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.checkpoints.writer import FLOW_SCHEDULER, write_clip, write_index, write_part
from safelight.models.evaluation.gallery import Gallery, GalleryEntry, shrink_renders
from safelight.models.recipes.emoji import data, dit, natural, prompts, text
from safelight.models.recipes.emoji.captions import COLOURS, WHITE
from safelight.models.recipes.emoji.words import caption_words
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.emoji_names import write_names
from safelight.models.text.open_clip_folder import load_clip
from safelight.models.text.spelling import write_words

BATCH = 16
# The concept of an image is decided at high noise, where a grid of equal steps in time has few points.
SCHEDULER = FLOW_SCHEDULER | {"flow_shift": 2.0}


def run(work: Path, output: Path) -> None:
    """Write the text tower, autoencoder, DiT and, if it is trained, scorer of `work` into `output`.

    The DiT's weights are the current ones, not their moving average: once the learning rate has decayed, the
    average lags behind (31 % against 27 % of 150 names at the same step).
    """
    output.mkdir(parents=True, exist_ok=True)
    sources = {text.CONDITIONING: text.tower_folder(work), text.SCORER: work / text.SCORER.folder}
    for spec, source in sources.items():
        if source.exists():
            clip = compact_embedding(_bfloat16(load_clip(source).state_dict()))
            write_clip(output / spec.folder, text.EMBED_DIM, spec.vision, text.TEXT, clip)
    vae_config = json.loads((work / "vae" / "config.json").read_text())
    write_part(output / "vae", vae_config, _bfloat16(load_file(work / "vae" / WEIGHTS)))
    state = torch.load(dit.latest(work), weights_only=True)
    trained = {name.removeprefix("dit."): tensor for name, tensor in state["module"].items()}
    write_part(output / "transformer", dit.CONFIG.to_diffusers(), _bfloat16(trained))
    write_index(output, SCHEDULER)
    dataset = data.load(work)
    make_gallery(dataset, output).save(output)
    concepts = {image.concept.hexcode: image.concept.label for image in dataset.images}
    tower_folder = output / text.CONDITIONING.folder
    write_names(concepts, tower_folder)
    captions = [caption for of_concept in natural.training_captions().values() for caption in of_concept]
    write_words(caption_words(dataset, captions, ClipTextTower(tower_folder)), tower_folder)
    prompts.run(work, output)
    size = sum(f.stat().st_size for f in output.rglob("*") if f.is_file())
    print(f"export: {output}, {size / 1e6:.1f} MB, DiT after {state['step']} steps")


def make_gallery(dataset: data.Dataset, output: Path) -> Gallery:
    """Make the gallery, with whether `output`'s autoencoder preserves each image's nearest concept."""
    entries = tuple(
        GalleryEntry(
            image.concept.hexcode,
            image.concept.label,
            image.concept.keywords,
            image.style,
            image.held_out_from_dit,
            restored=False,
        )
        for image in dataset.images
    )
    gallery = Gallery(entries, shrink_renders(dataset.rgba), COLOURS)
    vae = load_vae(output / "vae", "cpu", torch.float32)
    is_restored: list[bool] = []
    for start in track(range(0, len(entries), BATCH), description="gallery"):
        indices = range(start, min(start + BATCH, len(entries)))
        clean = torch.from_numpy(np.stack([dataset.on_background(i) for i in indices])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            restored = decode_latents(vae, encode_pixels(vae, clean.float() / 127.5 - 1.0))
        restored = restored.clamp(-1.0, 1.0)
        pixels = ((restored + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        is_restored += [
            gallery.concept_groups[nearest[0]] == gallery.concept_groups[i]
            for i, nearest in zip(indices, gallery.nearest(pixels, WHITE), strict=True)
        ]
    restored_entries = (
        replace(entry, restored=restored) for entry, restored in zip(entries, is_restored, strict=True)
    )
    return replace(gallery, entries=tuple(restored_entries))


def _bfloat16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
