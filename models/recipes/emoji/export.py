"""Stage `export`: write the trained parts as one folder in diffusers' layout, ready to serve.

Large matrices are in int8 (`safelight.models.checkpoints.int8_rows`), all else in bfloat16.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from safelight.models.autoencoders.interface import decode_latents, encode_pixels
from safelight.models.autoencoders.loading import load_vae
from safelight.models.checkpoints.compact_embedding import compact_embedding
from safelight.models.checkpoints.int8_rows import ROW_SCALE, quantise_matrices
from safelight.models.checkpoints.tensors import WEIGHTS
from safelight.models.checkpoints.writer import (
    write_clip,
    write_index,
    write_part,
    write_weights,
)
from safelight.models.evaluation.gallery import Gallery, GalleryEntry, shrink_renders
from safelight.models.recipes.emoji import cheap_decoder, data, dit, natural, prompts, text, turbo
from safelight.models.recipes.emoji.captions import COLOURS, WHITE
from safelight.models.recipes.emoji.schedule import SCHEDULER
from safelight.models.recipes.emoji.words import caption_words
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.emoji_names import write_names
from safelight.models.text.open_clip_folder import load_clip
from safelight.models.text.spelling import write_words

BATCH = 16
TURBO_VARIANT = "turbo"  # of the transformer's weights: `safelight.models.find_checkpoint.EMBEDDED`


def run(work: Path, output: Path) -> None:
    """Write the text tower, autoencoder, DiT and, if it is trained, scorer of `work` into `output`.

    The DiT's weights are the current ones, not their moving average: once the learning rate has decayed, the
    average lags behind (31 % against 27 % of 150 names at the same step).
    """
    output.mkdir(parents=True, exist_ok=True)
    sources = ((text.CONDITIONING, text.tower_folder(work)), (text.SCORER, work / text.SCORER.folder))
    for spec, source in sources:
        if source.exists():
            clip = compact_embedding(load_clip(source).state_dict())
            write_clip(output / spec.folder, text.EMBED_DIM, spec.vision, text.TEXT, _stored(clip))
    vae = next(folder for name in (cheap_decoder.FOLDER, "vae") if (folder := work / name).exists())
    vae_config = json.loads((vae / "config.json").read_text())
    write_part(output / "vae", vae_config, _stored(load_file(vae / WEIGHTS)))
    base = torch.load(dit.latest(work), weights_only=True)
    write_part(output / "transformer", dit.CONFIG.to_diffusers(), _stored(dit_weights(base)))
    if (work / turbo.CHECKPOINT).exists():
        student = torch.load(work / turbo.CHECKPOINT, weights_only=True)
        write_weights(output / "transformer", _stored(dit_weights(student)), TURBO_VARIANT)
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
    print(f"export: {output}, {size / 1e6:.1f} MB, DiT after {base['step']} steps")


def dit_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The DiT's weights in a checkpoint of the stages `dit`, `anneal` and `turbo`, under its own names."""
    return {name.removeprefix("dit."): tensor for name, tensor in checkpoint["module"].items()}


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


def _stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large matrices in int8 with float32 scales, all other floating point in bfloat16."""
    return {
        name: tensor.to(torch.bfloat16)
        if tensor.is_floating_point() and not name.endswith(ROW_SCALE)
        else tensor
        for name, tensor in quantise_matrices(state).items()
    }
