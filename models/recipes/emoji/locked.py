"""Stage `locked`: the text tower goes on alone, against every image at once (locked-image tuning, arXiv:2111.07991).

In-batch contrast tells a caption from 255 others; the model must tell it from all. The image tower stands still, so what it
makes of every image on every background is computed once, and a step costs the text side only. A step's choice is between
all images on white and all on one other background.
"""

import random
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from safelight.models.recipes.emoji import data, text
from safelight.models.recipes.emoji.captions import COLOURS, WHITE, sample_caption
from safelight.models.recipes.emoji.training import Average, TrainingRun

BATCH = 256
DRAWN_AT_ONCE = 128


def run(work: Path, num_steps: int, seed: int = 0) -> None:
    """Train the text half of `work/text.ckpt` for `num_steps`, then write `work/text_encoder` anew."""
    torch.manual_seed(seed)
    dataset = data.load(work)
    tokenizer = SimpleTokenizer(context_length=text.CONTEXT)
    clip = text.CONDITIONING.build()
    clip.load_state_dict(torch.load(work / "text.ckpt", weights_only=True)["average"], strict=False)
    features, images, colours = every_view(clip, dataset)
    tower = nn.ModuleDict({"text": clip.text})
    scale = clip.logit_scale.detach().exp()
    average = Average(tower, decay=0.998)
    rows = {name: torch.tensor([i for i, colour in enumerate(colours) if colour == name]) for name in COLOURS}

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        rng = random.Random(seed * 1_000_003 + step)
        other = rows[rng.choice([name for name in COLOURS if name != WHITE])]
        coloured = torch.rand(BATCH, generator=generator) < text.COLOURED
        picks = torch.where(
            coloured, len(rows[WHITE]) + _draw(other, generator), _draw(rows[WHITE], generator)
        )
        among = torch.cat([rows[WHITE], other])
        shown = [(dataset.images[images[i]], colours[i]) for i in among[picks].tolist()]
        captions = [sample_caption(image.concept, image.style, colour, rng) for image, colour in shown]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            read = F.normalize(text.read_texts(clip, tokenizer(captions)), dim=-1)
            logits = read @ features[among].T
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
def every_view(clip: CustomTextCLIP, dataset: data.Dataset) -> tuple[Tensor, list[int], list[str]]:
    """What the image tower makes of all trained images on all backgrounds they may be seen on: (V, D), of unit length.

    With them the number of each one's image and the name of its background.
    """
    clip.eval()
    small = text.small_images(dataset, text.VISION["image_size"])
    shown = [
        (i, c)
        for c in COLOURS
        for i, p in enumerate(dataset.images)
        if not p.held_out_from_dit and (c == WHITE or p.shown_on(c))
    ]
    features = []
    for first, last in pairwise([*range(0, len(shown), DRAWN_AT_ONCE), len(shown)]):
        images, colours = zip(*shown[first:last], strict=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features.append(clip.encode_image(text.composited(small[list(images)], colours), normalize=True))
    numbers, colours = zip(*shown, strict=True)
    return torch.cat(features).bfloat16(), list(numbers), list(colours)


def _draw(rows: Tensor, generator: torch.Generator) -> Tensor:
    """`BATCH` places in `rows`."""
    return torch.randint(len(rows), (BATCH,), generator=generator)
