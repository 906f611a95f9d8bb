"""Stage `text`: a small open_clip CLIP, trained contrastively on pictures and captions, then frozen.

The text tower conditions the DiT. Pictures held out from the DiT are held out here too. After training, the
embedding rows of tokens that the caption grammar cannot produce are set to zero.
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from models.layout import write_clip
from models.recipes.emoji import data
from models.recipes.emoji.captions import STYLE_PHRASES, sample_caption
from models.recipes.emoji.training import Average, Run

EMBED_DIM = WIDTH = 192
CONTEXT = 31  # with the pooled vector: 32 states
VISION = {"image_size": 64, "layers": 4, "width": WIDTH, "head_width": 64, "patch_size": 16}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": 3, "layers": 3}
BATCH = 256
CHECK_PICTURES = 256


def build() -> CustomTextCLIP:
    """The untrained CLIP (13 M parameters, 9.5 M of them token embeddings)."""
    return CustomTextCLIP(EMBED_DIM, CLIPVisionCfg(**VISION), CLIPTextCfg(**TEXT))


def run(work: Path, num_steps: int, seed: int = 0) -> None:
    """Train, then write `work/text_encoder` in open_clip's local-dir layout (float32)."""
    torch.manual_seed(seed)
    dataset = data.load(work)
    seen = torch.tensor([i for i, p in enumerate(dataset.pictures) if not p.held_out_from_dit])
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    images = small_pictures(dataset)
    clip = build()
    optimiser = torch.optim.AdamW(clip.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    average = Average(clip, decay=0.99)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        picks = seen[torch.randperm(len(seen), generator=generator)[:BATCH]]
        rng = random.Random(seed * 1_000_003 + step)
        captions = [sample_caption(p.concept, p.style, rng) for p in (dataset.pictures[i] for i in picks.tolist())]
        return _loss(clip, _views(images[picks], generator), tokenizer(captions))

    Run("text", clip, [optimiser], average, num_steps, work / "text.ckpt").train(loss_of_step, seed)
    clip.load_state_dict(average.shadow, strict=False)
    _forget_unseen_tokens(clip, dataset, tokenizer)
    write_clip(work / "text_encoder", EMBED_DIM, VISION, TEXT, clip.state_dict())
    print(f"text: in-batch retrieval (batch {CHECK_PICTURES}) {retrieval(clip, dataset, tokenizer):.3f}")


@torch.inference_mode()
def retrieval(clip: CustomTextCLIP, dataset: data.Dataset, tokenizer: SimpleTokenizer) -> float:
    """Share of captions (label with style) whose own picture is the nearest of a fixed batch of trained pictures."""
    clip.eval()
    seen = torch.tensor([i for i, p in enumerate(dataset.pictures) if not p.held_out_from_dit])
    picks = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:CHECK_PICTURES]]
    captions = [f"{p.style} {p.concept.label}" for p in (dataset.pictures[i] for i in picks.tolist())]
    images = clip.encode_image(small_pictures(dataset)[picks].float() / 127.5 - 1.0, normalize=True)
    texts = clip.encode_text(tokenizer(captions), normalize=True)
    return ((texts @ images.T).argmax(1) == torch.arange(len(picks))).float().mean().item()


def _loss(clip: CustomTextCLIP, images: Tensor, ids: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image_features = clip.encode_image(images, normalize=True)
        text_features = clip.encode_text(ids, normalize=True)
    logits = clip.logit_scale.exp().clamp(max=100.0) * image_features.float() @ text_features.float().T
    own = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def small_pictures(dataset: data.Dataset) -> Tensor:
    """All pictures on white, halved: uint8 (P, 3, 64, 64)."""
    halved = [F.avg_pool2d(torch.from_numpy(dataset.on_background(i)).permute(2, 0, 1).float(), 2) for i in range(len(dataset.pictures))]
    return torch.stack(halved).round().to(torch.uint8)


def _views(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, 64, 64) uint8, shifted by up to four pixels with a little noise, in about [-1, 1]."""
    images = pictures.float() / 127.5 - 1.0
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    return torch.roll(images, shift, (2, 3)) + 0.05 * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def _forget_unseen_tokens(clip: CustomTextCLIP, dataset: data.Dataset, tokenizer: SimpleTokenizer) -> None:
    texts = {word for p in dataset.pictures for word in (p.concept.label, *p.concept.keywords)}
    texts |= {phrase.format("") for phrases in STYLE_PHRASES.values() for phrase in phrases} | {"a", "an", ","}
    seen = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for text in texts:
        seen.update(tokenizer.encode(text))
        seen.update(tokenizer.encode(f"{text},"))
    unseen = torch.ones(TEXT["vocab_size"], dtype=torch.bool)
    unseen[sorted(seen)] = False
    clip.text.token_embedding.weight[unseen] = 0.0
    print(f"text: {len(seen)} tokens known, {int(unseen.sum())} embedding rows zeroed")
