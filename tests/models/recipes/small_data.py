"""A data set of nine images, and a work folder as the first stages of the recipe leave it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safelight.models.checkpoints.writer import write_part
from safelight.models.recipes.emoji import (
    data,
    dit,
    text,
    vae,
)
from safelight.models.recipes.emoji.captions import STYLES, Concept
from safelight.models.recipes.emoji.training import WeightAverage

WEIGHTS = Path(dit.__file__).parents[2] / "weights" / "emoji-128"
SMALL = replace(dit.CONFIG, num_attention_heads=1, num_layers=2)
CONCEPTS = (
    Concept("1f34e", "red apple", ("fruit", "healthy", "red")),
    Concept("1f680", "rocket", ("space", "launch")),
    Concept("1f335", "cactus", ("desert", "plant", "nature")),  # its `noto` image is held out
)


def write_inputs(work: Path) -> None:
    """Write data, CLIP, autoencoder, DiT and soft targets."""
    torch.manual_seed(0)
    images = [(concept, style) for concept in CONCEPTS for style in STYLES]
    rng = np.random.default_rng(0)
    np.save(work / "pictures.npy", rng.integers(0, 256, (len(images), 128, 128, 4), np.uint8))
    records = [
        {"hexcode": c.hexcode, "label": c.label, "keywords": c.keywords, "style": s} for c, s in images
    ]
    (work / "pictures.json").write_text(json.dumps(records))
    dataset = data.load(work)
    clip = text.CONDITIONING.build()
    text._zero_untrained_tokens(clip, text.trained_tokens(dataset))
    text.write_folder(work / text.CONDITIONING.folder, text.CONDITIONING, clip)
    write_part(work / "vae", vae.OPTIONS.to_diffusers(), vae.build().state_dict())
    model = dit.ConditionedDiT(dit.build(SMALL))
    torch.nn.init.normal_(model.dit.proj_out.weight, std=0.1)  # a network of zeros has nothing to distil
    state = {"step": 0, "module": model.state_dict(), "average": WeightAverage(model, 0.9).shadow}
    torch.save(state | {"optimisers": []}, work / "dit.ckpt")
    texts = ["red apple", "a tin of sardines", "rocket ship"]
    probabilities = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]])
    targets = {
        "texts": texts,
        "concepts": torch.tensor([[0, 1], [2, 0], [1, 2]]),
        "probabilities": probabilities,
    }
    torch.save(targets, work / "teacher.pt")


def embed(work: Path, texts: list[str]) -> Tensor:
    """Stands in for the sentence encoder: a fixed random vector for each text."""
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(hash_of(t))) for t in texts]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode()[:7].ljust(7), "big")
