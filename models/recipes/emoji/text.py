"""Stages `text` and `scorer`: train two small open_clip CLIPs contrastively on images and captions.

The text tower of `text` conditions the DiT, so it does not see images that are held out from the DiT.
`scorer` shares no weights with it, sees all images, and scores generated ones. After training, the embedding
rows of tokens that the caption grammar cannot produce are set to zero.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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
from safelight.models.recipes.emoji.training import TrainingRun, WeightAverage, native_autocast
from safelight.models.text.open_clip_classes import (
    CLIPTextCfg,
    CLIPVisionCfg,
    CustomTextCLIP,
    SimpleTokenizer,
    TextTransformer,
)

EMBED_DIM = WIDTH = 192
CONTEXT = 31  # tokens; 32 text states with the pooled vector
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
CHECK_IMAGES = 256  # in the batch of `retrieval`
COLOURED_SHARE = 0.25  # the share of images with another background than white


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """What differs between the two CLIPs.

    With `sees_all` it is also trained on the images that are held out from the DiT.
    """

    stage: str
    folder: str
    vision: dict[str, int]
    seed: int
    sees_all: bool

    def build(self) -> CustomTextCLIP:
        """Build the untrained CLIP: 13 M parameters, 9.5 M of them token embeddings."""
        return CustomTextCLIP(EMBED_DIM, CLIPVisionCfg(**self.vision), CLIPTextCfg(**TEXT))

    def training_images(self, dataset: data.Dataset) -> Tensor:
        """The indices of the images that it is trained on."""
        return torch.tensor(
            [i for i, image in enumerate(dataset.images) if self.sees_all or not image.held_out_from_dit]
        )


CONDITIONING = ClipSpec("text", "text_encoder", VISION, seed=0, sees_all=False)
NATURAL_FOLDER = f"{CONDITIONING.folder}-natural"
SCORER = ClipSpec("scorer", "scorer", SCORER_VISION, seed=1, sees_all=True)


def run(work: Path, num_steps: int, spec: ClipSpec = CONDITIONING) -> None:
    """Train a CLIP and write it in open_clip's local-dir layout, float32, into its folder in `work`."""
    torch.manual_seed(spec.seed)
    dataset = data.load(work)
    trained = spec.training_images(dataset)
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    images = small_images(dataset, spec.vision["image_size"])
    clip = spec.build()
    optimiser = torch.optim.AdamW(
        clip.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    average = WeightAverage(clip, decay=0.99)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        picks = trained[torch.randperm(len(trained), generator=generator)[:BATCH]]
        rng = random.Random(spec.seed * 1_000_003 + step)
        batch = [dataset.images[i] for i in picks.tolist()]
        colours = [_draw_background(image, rng) for image in batch]
        captions = [
            sample_caption(image.concept, image.style, colour, rng)
            for image, colour in zip(batch, colours, strict=True)
        ]
        return _loss(clip, _augment(on_backgrounds(images[picks], colours), generator), tokenizer(captions))

    TrainingRun(spec.stage, clip, [optimiser], average, num_steps, work / f"{spec.stage}.ckpt").train(
        loss_of_step, spec.seed
    )
    clip.load_state_dict(average.shadow, strict=False)
    write(work, spec, clip, dataset)


def write(work: Path, spec: ClipSpec, clip: CustomTextCLIP, dataset: data.Dataset) -> None:
    """Write `clip` into its folder, with the embeddings of untrained tokens set to zero."""
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    _zero_untrained_tokens(clip, trained_tokens(dataset))
    write_folder(work / spec.folder, spec, clip)
    share = retrieval(spec, clip, dataset, tokenizer)
    print(f"{spec.stage}: in-batch retrieval (batch {CHECK_IMAGES}) {share:.3f}")


def write_folder(folder: Path, spec: ClipSpec, clip: CustomTextCLIP) -> None:
    """Write `clip` in open_clip's layout as it is."""
    write_clip(folder, EMBED_DIM, spec.vision, TEXT, clip.state_dict())


def tower_folder(work: Path) -> Path:
    """The text tower to condition on: the one trained on natural captions, if there is one."""
    folder = work / NATURAL_FOLDER
    return folder if folder.exists() else work / CONDITIONING.folder


@torch.inference_mode()
def retrieval(
    spec: ClipSpec, clip: CustomTextCLIP, dataset: data.Dataset, tokenizer: SimpleTokenizer
) -> float:
    """The share of captions (style, label) whose image is the nearest in a fixed batch of training images."""
    clip.eval()
    trained = spec.training_images(dataset)
    generator = torch.Generator().manual_seed(0)
    picks = trained[torch.randperm(len(trained), generator=generator)[:CHECK_IMAGES]]
    captions = [
        f"{image.style} {image.concept.label}" for image in (dataset.images[i] for i in picks.tolist())
    ]
    small = small_images(dataset, spec.vision["image_size"])[picks]
    images = clip.encode_image(on_backgrounds(small, [WHITE] * len(picks)), normalize=True)
    texts = clip.encode_text(tokenizer(captions), normalize=True)
    return float(((texts @ images.T).argmax(1) == torch.arange(len(picks))).float().mean())


def _loss(clip: CustomTextCLIP, images: Tensor, ids: Tensor) -> Tensor:
    with native_autocast():
        image_features = clip.encode_image(images, normalize=True)
        text_features = F.normalize(encode_texts(clip, ids), dim=-1)
    logits = clip.logit_scale.exp().clamp(max=100.0) * image_features.float() @ text_features.float().T
    targets = torch.arange(len(logits))
    return 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))


def encode_texts(clip: CustomTextCLIP, ids: Tensor) -> Tensor:
    """Encode `ids` (B, context) to pooled vectors (B, D); padding after the longest text is cut off first."""
    with shortened(clip.text, ids) as short:
        pooled: Tensor = clip.text(short)
    return pooled


@contextmanager
def shortened(tower: TextTransformer, ids: Tensor) -> Iterator[Tensor]:
    """Yield `ids` (B, context) without the padding after the longest text; inside, `tower` takes them."""
    causal, longest = tower.attn_mask, int(ids.argmax(dim=1).max()) + 1
    tower.attn_mask = causal[:longest, :longest]
    try:
        yield ids[:, :longest]
    finally:
        tower.attn_mask = causal


def small_images(dataset: data.Dataset, side: int) -> Tensor:
    """All images at `side` pixels, colour times opacity: (P, 4, side, side) uint8."""
    return torch.stack([_shrink(rgba, side) for rgba in dataset.rgba])


def _shrink(rgba: np.ndarray, side: int) -> Tensor:
    pixels = torch.from_numpy(rgba.copy()).permute(2, 0, 1).float()
    pixels[:3] *= pixels[3:] / 255.0
    return F.avg_pool2d(pixels, rgba.shape[0] // side).round().to(torch.uint8)


def _draw_background(image: data.EmojiImage, rng: random.Random) -> str:
    """White, or for `COLOURED_SHARE` of the images another background on which it may be shown."""
    if rng.random() >= COLOURED_SHARE:
        return WHITE
    return rng.choice([c for c in COLOURS if c != WHITE and image.shown_on(c)])


def on_backgrounds(images: Tensor, colours: Sequence[str]) -> Tensor:
    """Put images from `small_images`, (B, 4, S, S), on their backgrounds: (B, 3, S, S) in [-1, 1]."""
    flat = torch.tensor([COLOURS[c] for c in colours])[:, :, None, None] * (1.0 - images[:, 3:] / 255.0)
    return (images[:, :3] + flat) / 127.5 - 1.0


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift images (B, 3, S, S) by up to a sixteenth of their side and add a little noise."""
    max_shift = images.shape[-1] // 16
    shift = torch.randint(-max_shift, max_shift + 1, (2,), generator=generator).tolist()
    return torch.roll(images, shift, (2, 3)) + 0.05 * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def _zero_untrained_tokens(clip: CustomTextCLIP, trained: Sequence[int]) -> None:
    is_untrained = torch.ones(TEXT["vocab_size"], dtype=torch.bool)
    is_untrained[trained] = False
    clip.text.token_embedding.weight[is_untrained] = 0.0
    print(f"{len(trained)} tokens trained, {int(is_untrained.sum())} embedding rows zeroed")


def trained_tokens(dataset: data.Dataset, captions: Iterable[str] = ()) -> list[int]:
    """The tokens of all captions that the grammar can produce, and of additional `captions`, in order."""
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    texts = {word for image in dataset.images for word in (image.concept.label, *image.concept.keywords)}
    texts |= {phrase.format("") for phrases in STYLE_PHRASES.values() for phrase in phrases}
    texts |= {"a", "an", ",", *captions}
    texts |= {phrase.format("", colour) for phrase in BACKGROUND_PHRASES for colour in COLOURS}
    trained = {tokenizer.sot_token_id, tokenizer.eot_token_id}
    for text in texts:
        trained.update(tokenizer.encode(text))
        trained.update(tokenizer.encode(f"{text},"))
    return sorted(trained)
