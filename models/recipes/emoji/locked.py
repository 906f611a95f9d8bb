"""Stage `locked`: train the text tower alone, against every image at once.

This is locked-image tuning (arXiv:2111.07991).
An in-batch contrastive loss compares a caption with 256 images; here it is compared with all of them.
The image tower is frozen, so its features of every image on every background are computed once, and a step
costs only the text tower. Each step contrasts all images on white and all images on one other background.
"""

import random
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.recipes.emoji import data, text
from safelight.models.recipes.emoji.captions import COLOURS, WHITE, sample_caption
from safelight.models.recipes.emoji.training import TrainingRun, WeightAverage, native_autocast
from safelight.models.text.open_clip_classes import CustomTextCLIP, SimpleTokenizer
from safelight.pipeline.assembly.device import fast_dtype

BATCH = 256
IMAGE_BATCH = 128


def run(work: Path, num_steps: int, seed: int = 0) -> None:
    """Train the text tower of `work/text.ckpt` for `num_steps`, then replace `work/text_encoder`."""
    torch.manual_seed(seed)
    dataset = data.load(work)
    tokenizer = SimpleTokenizer(context_length=text.CONTEXT)
    clip = text.CONDITIONING.build()
    clip.load_state_dict(torch.load(work / "text.ckpt", weights_only=True)["average"], strict=False)
    features, images, colours = encode_views(clip, dataset)
    tower = nn.ModuleDict({"text": clip.text})
    scale = clip.logit_scale.detach().exp()
    average = WeightAverage(tower, decay=0.998)
    rows = {name: torch.tensor([i for i, colour in enumerate(colours) if colour == name]) for name in COLOURS}

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        rng = random.Random(seed * 1_000_003 + step)
        white, coloured = rows[WHITE], rows[rng.choice([name for name in COLOURS if name != WHITE])]
        is_coloured = torch.rand(BATCH, generator=generator) < text.COLOURED_SHARE
        picks = torch.where(is_coloured, len(white) + _draw(coloured, generator), _draw(white, generator))
        candidates = torch.cat([white, coloured])
        views = [(dataset.images[images[i]], colours[i]) for i in candidates[picks].tolist()]
        captions = [sample_caption(image.concept, image.style, colour, rng) for image, colour in views]
        with native_autocast():
            text_features = F.normalize(text.encode_texts(clip, tokenizer(captions)), dim=-1)
            logits = text_features @ features[candidates].T
        return F.cross_entropy(scale * logits.float(), picks)

    optimiser = torch.optim.AdamW(
        tower.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    TrainingRun("locked", tower, [optimiser], average, num_steps, work / "locked.ckpt").train(
        loss_of_step, seed
    )
    tower.load_state_dict(average.shadow, strict=False)
    text.write(work, text.CONDITIONING, clip, dataset)


@torch.no_grad()
def encode_views(clip: CustomTextCLIP, dataset: data.Dataset) -> tuple[Tensor, list[int], list[str]]:
    """Encode all training images on all backgrounds on which they may be shown.

    Returns:
        The features (V, D) of unit length, the index of each view's image, and the name of its background.
    """
    clip.eval()
    small = text.small_images(dataset, text.VISION["image_size"])
    views = [
        (index, colour)
        for colour in COLOURS
        for index, image in enumerate(dataset.images)
        if not image.held_out_from_dit and (colour == WHITE or image.shown_on(colour))
    ]
    features = []
    for first, last in pairwise([*range(0, len(views), IMAGE_BATCH), len(views)]):
        images, colours = zip(*views[first:last], strict=True)
        with native_autocast():
            features.append(
                clip.encode_image(text.on_backgrounds(small[list(images)], colours), normalize=True)
            )
    images, colours = zip(*views, strict=True)
    return torch.cat(features).to(fast_dtype()), list(images), list(colours)


def _draw(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Draw `BATCH` positions in `rows`."""
    return torch.randint(len(rows), (BATCH,), generator=generator)
