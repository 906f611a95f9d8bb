"""Stage `retrieval`: the share of prompts whose nearest image, as the CLIP sees both, is of the concept.

It bounds what the DiT can draw with this text tower, and takes seconds where drawing takes an hour.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from safelight.models.checkpoints.tensors import CLIP_WEIGHTS
from safelight.models.recipes.emoji import data, prompts, text
from safelight.models.recipes.emoji.captions import WHITE
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.open_clip_classes import CustomTextCLIP
from safelight.pipeline.evaluation.nearest_image import Rate
from safelight.pipeline.evaluation.prompts import Prompt

BATCH = 128


def run(work: Path) -> None:
    """Print the rates of the text tower of `work` on all prompt sets without backgrounds."""
    folder, dataset = text.tower_folder(work), data.load(work)
    features = image_features(work, dataset)
    for name, of_set in prompts.make_sets(dataset.images).items():
        if not any(prompt.background for prompt in of_set):
            print(f"retrieval: {name:9} {rate(folder, dataset, features, of_set).as_text()}")


def rate(folder: Path, dataset: data.Dataset, features: Tensor, of_set: Sequence[Prompt]) -> Rate:
    """The rate of the tower in `folder`; `features` (images, D) are of all images on white."""
    tower = ClipTextTower(folder).eval()
    with torch.inference_mode():
        vectors = [tower.read(prompt.text).states[0] for prompt in of_set]  # the pooled vector is the first
    nearest = (torch.stack(vectors) @ features.T).argmax(1).tolist()
    return Rate.from_hits(
        [
            dataset.images[i].concept.hexcode in prompt.concepts
            for i, prompt in zip(nearest, of_set, strict=True)
        ]
    )


def image_features(work: Path, dataset: data.Dataset) -> Tensor:
    """Unit vectors (images, D) of all images on white, held-out ones too; they are kept in `work`."""
    file = work / "image-features.pt"
    if not file.exists():
        torch.save(_encode(load_clip(work / text.CONDITIONING.folder), dataset), file)
    features: Tensor = torch.load(file, weights_only=True)
    return features


def load_clip(folder: Path) -> CustomTextCLIP:
    """The conditioning CLIP, both towers, from a folder that a stage wrote."""
    clip = text.CONDITIONING.build()
    clip.load_state_dict(load_file(folder / CLIP_WEIGHTS))
    return clip.eval()


@torch.no_grad()
def _encode(clip: CustomTextCLIP, dataset: data.Dataset) -> Tensor:
    small = text.small_images(dataset, text.VISION["image_size"])
    return torch.cat(
        [
            F.normalize(clip.encode_image(text.on_backgrounds(part, [WHITE] * len(part))), dim=-1)
            for part in small.split(BATCH)
        ]
    )
