"""Stages `text` and `scorer`: small open_clip CLIPs, trained contrastively on images and captions.

The text tower of the one conditions the DiT; images held out from the DiT are held out there too. The other shares no weight
with it, sees all images, and scores what was drawn. After training, the embedding rows of tokens that the caption grammar
cannot produce are set to zero.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from safelight.models.checkpoints.writer import write_clip
from safelight.models.evaluation import gallery
from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import (
    BACKGROUND_PHRASES,
    COLOURS,
    STYLE_PHRASES,
    WHITE,
    sample_caption,
)
from safelight.models.recipes.emoji.training import Average, TrainingRun

EMBED_DIM = WIDTH = 192
CONTEXT = 31  # with the pooled vector: 32 states
VISION = {"image_size": 64, "layers": 4, "width": WIDTH, "head_width": 64, "patch_size": 16}
SCORER_VISION = {
    "image_size": gallery.SIDE,
    "layers": 4,
    "width": WIDTH,
    "head_width": 64,
    "patch_size": gallery.SIDE // 4,
}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": 3, "layers": 3}
BATCH = 256
CHECK_IMAGES = 256
COLOURED = 0.25  # of the images lie on another background than white


@dataclass(frozen=True, slots=True)
class Clip:
    """What tells the two apart: the name of the stage, the folder of the result, its eyes, its seed and what it may see."""

    stage: str
    folder: str
    vision: dict[str, int]
    seed: int
    sees_all: bool

    def build(self) -> CustomTextCLIP:
        """The untrained CLIP (13 M parameters, 9.5 M of them token embeddings)."""
        return CustomTextCLIP(EMBED_DIM, CLIPVisionCfg(**self.vision), CLIPTextCfg(**TEXT))

    def images(self, dataset: data.Dataset) -> Tensor:
        """The rows that it is trained on."""
        return torch.tensor(
            [i for i, p in enumerate(dataset.images) if self.sees_all or not p.held_out_from_dit]
        )


CONDITIONING = Clip("text", "text_encoder", VISION, seed=0, sees_all=False)
SCORER = Clip("scorer", "scorer", SCORER_VISION, seed=1, sees_all=True)


def run(work: Path, num_steps: int, which: Clip = CONDITIONING) -> None:
    """Train, then write the CLIP in open_clip's local-dir layout (float32) into its folder of `work`."""
    torch.manual_seed(which.seed)
    dataset = data.load(work)
    seen = which.images(dataset)
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    images = small_images(dataset, which.vision["image_size"])
    clip = which.build()
    optimiser = torch.optim.AdamW(
        clip.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    average = Average(clip, decay=0.99)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        picks = seen[torch.randperm(len(seen), generator=generator)[:BATCH]]
        rng = random.Random(which.seed * 1_000_003 + step)
        shown = [dataset.images[i] for i in picks.tolist()]
        colours = [_background(p, rng) for p in shown]
        captions = [sample_caption(p.concept, p.style, c, rng) for p, c in zip(shown, colours, strict=True)]
        return _loss(clip, _views(composited(images[picks], colours), generator), tokenizer(captions))

    TrainingRun(which.stage, clip, [optimiser], average, num_steps, work / f"{which.stage}.ckpt").train(
        loss_of_step, which.seed
    )
    clip.load_state_dict(average.shadow, strict=False)
    write(work, which, clip, dataset)


def write(work: Path, which: Clip, clip: CustomTextCLIP, dataset: data.Dataset) -> None:
    """Write `clip` into its folder, without the tokens that no caption has."""
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    _forget_unseen_tokens(clip, dataset, tokenizer)
    write_clip(work / which.folder, EMBED_DIM, which.vision, TEXT, clip.state_dict())
    print(
        f"{which.stage}: in-batch retrieval (batch {CHECK_IMAGES}) {retrieval(which, clip, dataset, tokenizer):.3f}"
    )


@torch.inference_mode()
def retrieval(which: Clip, clip: CustomTextCLIP, dataset: data.Dataset, tokenizer: SimpleTokenizer) -> float:
    """Share of captions (label with style) whose own image is the nearest of a fixed batch of trained images."""
    clip.eval()
    seen = which.images(dataset)
    picks = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:CHECK_IMAGES]]
    captions = [f"{p.style} {p.concept.label}" for p in (dataset.images[i] for i in picks.tolist())]
    small = small_images(dataset, which.vision["image_size"])[picks]
    images = clip.encode_image(composited(small, [WHITE] * len(picks)), normalize=True)
    texts = clip.encode_text(tokenizer(captions), normalize=True)
    return ((texts @ images.T).argmax(1) == torch.arange(len(picks))).float().mean().item()


def _loss(clip: CustomTextCLIP, images: Tensor, ids: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_features = clip.encode_image(images, normalize=True)
        text_features = F.normalize(read_texts(clip, ids), dim=-1)
    logits = clip.logit_scale.exp().clamp(max=100.0) * image_features.float() @ text_features.float().T
    own = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def read_texts(clip: CustomTextCLIP, ids: Tensor) -> Tensor:
    """The text tower's pooled vectors (B, D) of `ids` (B, context); what is behind the end of the longest text costs nothing."""
    causal, longest = clip.text.attn_mask, int(ids.argmax(dim=1).max()) + 1
    clip.text.attn_mask = causal[:longest, :longest]
    try:
        pooled: Tensor = clip.text(ids[:, :longest])
        return pooled
    finally:
        clip.text.attn_mask = causal


def small_images(dataset: data.Dataset, side: int) -> Tensor:
    """All images at `side` pixels, their colours multiplied by their opacity: uint8 (P, 4, side, side)."""
    return torch.stack([_shrunk(rgba, side) for rgba in dataset.rgba])


def _shrunk(rgba: np.ndarray, side: int) -> Tensor:
    pixels = torch.from_numpy(rgba.copy()).permute(2, 0, 1).float()
    pixels[:3] *= pixels[3:] / 255.0
    return F.avg_pool2d(pixels, rgba.shape[0] // side).round().to(torch.uint8)


def _background(image: data.EmojiImage, rng: random.Random) -> str:
    """White, or for some any other background that this image may be seen on."""
    if rng.random() >= COLOURED:
        return WHITE
    return rng.choice([c for c in COLOURS if c != WHITE and image.shown_on(c)])


def composited(images: Tensor, colours: Sequence[str]) -> Tensor:
    """What `small_images` made (B, 4, S, S), each on its background: (B, 3, S, S) in [-1, 1]."""
    flat = torch.tensor([COLOURS[c] for c in colours])[:, :, None, None] * (1.0 - images[:, 3:] / 255.0)
    return (images[:, :3] + flat) / 127.5 - 1.0


def _views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, S, S), shifted by up to a sixteenth with a little noise."""
    most = images.shape[-1] // 16
    shift = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(images, shift, (2, 3)) + 0.05 * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def _forget_unseen_tokens(clip: CustomTextCLIP, dataset: data.Dataset, tokenizer: SimpleTokenizer) -> None:
    texts = {word for p in dataset.images for word in (p.concept.label, *p.concept.keywords)}
    texts |= {phrase.format("") for phrases in STYLE_PHRASES.values() for phrase in phrases} | {
        "a",
        "an",
        ",",
    }
    texts |= {phrase.format("", colour) for phrase in BACKGROUND_PHRASES for colour in COLOURS}
    seen = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for text in texts:
        seen.update(tokenizer.encode(text))
        seen.update(tokenizer.encode(f"{text},"))
    unseen = torch.ones(TEXT["vocab_size"], dtype=torch.bool)
    unseen[sorted(seen)] = False
    clip.text.token_embedding.weight[unseen] = 0.0
    print(f"{len(seen)} tokens known, {int(unseen.sum())} embedding rows zeroed")
