"""Stages `dit` and `anneal`: train the diffusion transformer on frozen latents and a frozen text tower.

The objective is flow matching. Stage `dit` trains at a constant learning rate for as long as it helps.
Stage `anneal` takes a copy of its checkpoint and lowers the rate to zero, which brings out detail (Hägele et
al. 2024, arXiv:2405.18392). A batch has one size; about half of the batches have another than the native one.
The text is dropped in a tenth of the samples, so that guidance has an unconditional prediction.
"""

import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from safelight.models.networks.attention import BACKENDS
from safelight.models.networks.config import DiTConfig
from safelight.models.networks.dit import DiT
from safelight.models.recipes import objectives
from safelight.models.recipes.emoji import data, natural, text, views
from safelight.models.recipes.emoji.captions import WHITE, sample_caption
from safelight.models.recipes.emoji.muon import Muon
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    forward_function,
    one_minus_sqrt,
    warmup_stable,
)
from safelight.models.recipes.emoji.vae import LATENT_CHANNELS
from safelight.models.text.clip import ClipTextTower
from safelight.pipeline.assembly.device import fast_device
from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS

CONFIG = DiTConfig(
    num_attention_heads=4,
    attention_head_dim=64,
    in_channels=LATENT_CHANNELS,
    out_channels=LATENT_CHANNELS,
    num_layers=8,
    sample_size=16,
    patch_size=2,
    caption_channels=192,
    interpolation_scale=1,
)
BATCH = 64  # a step of the optimiser costs as much as 20 samples, at any batch size
DROPPED_TEXT_SHARE = 0.1
ANNEALED = "annealed-"  # prefix of the checkpoints of stage `anneal`
COLOURED_SHARE = 0.2  # the share of samples with another background than white
OTHER_SIZES_SHARE = 0.5  # the share of batches
WARMUP = 200  # steps
# The concept of an image is decided while t > 0.7: a single prediction from a noised image shows its concept
# in 97 % of cases at t = 0.6, and in 15 % at 0.9. With the usual mean of 0 only a fifth of the samples have
# such times.
MEAN_LOGIT_TIME = 1.5


class ConditionedDiT(nn.Module):
    """The DiT as one function of latents, times and text, as training calls it."""

    def __init__(self, dit: DiT):
        super().__init__()
        self.dit = dit

    def forward(self, x: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        dtype = self.dit.proj_out.weight.dtype
        text = self.dit.text_key_values(states.to(dtype), mask)
        out: Tensor = self.dit(x.to(dtype), self.dit.modulations(timesteps), text)
        return out


def build(config: DiTConfig = CONFIG) -> DiT:
    """Build the untrained DiT, initialised as in PixArt: the output projections of cross-attention and
    of the network start at zero."""
    # At 64 tokens the backward pass of plain attention takes two thirds of the fused one's time.
    dit = DiT(config, attention=BACKENDS["plain"])
    dit.init_tables()
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in (
        dit.adaln_single.linear,
        *dit.adaln_single.emb["timestep_embedder"].children(),
        *dit.caption_projection.children(),
    ):
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=0.02)
    for layer in (*(block.attn2.to_out[0] for block in dit.transformer_blocks), dit.proj_out):
        nn.init.zeros_(layer.weight)
    return dit


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train: until `num_steps` or for `minutes`, at `rate` times the usual learning rates.

    `batch` is the number of images of the native size in a batch; other sizes have about as many pixels.
    """

    num_steps: int
    minutes: float = math.inf
    batch: int = BATCH
    rate: float = 1.0
    other_sizes: bool = True
    seed: int = 0


def run(work: Path, options: TrainingOptions) -> None:
    """Train to `num_steps` in total at a constant learning rate; the state is in `work/dit.ckpt`."""
    train(work, work / "dit.ckpt", options, warmup_stable)


def anneal(work: Path, options: TrainingOptions) -> None:
    """Train a copy of `work/dit.ckpt` for `num_steps` more at a falling rate, as `work/annealed-STEP.ckpt`.

    STEP is the number of steps of `dit.ckpt`; an existing file is resumed.
    """
    first = int(torch.load(work / "dit.ckpt", weights_only=True)["step"])
    checkpoint = work / f"{ANNEALED}{first:06d}.ckpt"
    if not checkpoint.exists():
        shutil.copy(work / "dit.ckpt", checkpoint)
    options = replace(options, num_steps=first + options.num_steps)
    train(work, checkpoint, options, lambda step, last, _: one_minus_sqrt(step, last, first))


def latest(work: Path) -> Path:
    """The checkpoint to export: the one annealed from the latest step, or the unannealed one."""
    return max(work.glob(f"{ANNEALED}*.ckpt"), default=work / "dit.ckpt")


def size_of_batch(generator: torch.Generator) -> tuple[int, int]:
    """Draw the size (width, height) of a batch: for `OTHER_SIZES_SHARE` of the batches not the native one."""
    if torch.rand((), generator=generator) >= OTHER_SIZES_SHARE:
        return views.NATIVE
    return views.OTHERS[int(torch.randint(len(views.OTHERS), (), generator=generator))]


def train(
    work: Path, checkpoint: Path, options: TrainingOptions, schedule: Callable[[int, int, int], float]
) -> None:
    """Train the DiT.

    Args:
        work: the recipe's folder.
        checkpoint: the file to resume from and to save to.
        options: how long, on what and how fast.
        schedule: the learning-rate factor by (step, num_steps, warmup).
    """
    torch.manual_seed(options.seed)
    device = fast_device()
    tower = ClipTextTower(text.tower_folder(work)).to(device)
    batches = TrainingBatches(work, data.load(work), tower, options.seed)
    model = ConditionedDiT(build()).to(device)
    forward = forward_function(model)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        size = size_of_batch(generator) if options.other_sizes else views.NATIVE
        return _loss(forward, batches.draw(size, generator, options.batch), generator)

    TrainingRun(
        checkpoint.stem,
        model,
        optimisers(model),
        WeightAverage(model, decay=0.9995),
        options.num_steps,
        checkpoint,
        warmup=WARMUP,
        schedule=lambda *step: options.rate * schedule(*step),
        save_every_s=300.0,
        minutes=options.minutes,
    ).train(loss_of_step, options.seed)


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the blocks' matrices, AdamW for all other parameters."""
    matrices = [
        p for name, p in model.named_parameters() if "transformer_blocks" in name and name.endswith("weight")
    ]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        Muon(matrices, lr=2e-3, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclass(frozen=True, slots=True)
class Batch:
    """A training batch: clean latents x0 (B, C, h, w) float32, text states (B, L, D), their mask (B, L)."""

    x0: Tensor
    states: Tensor
    mask: Tensor


class TrainingBatches:
    """Draws batches: cached latents of every size, with a new caption for every sample."""

    def __init__(self, work: Path, dataset: data.Dataset, tower: ClipTextTower, seed: int):
        self._images = dataset.images
        self._tower = tower
        # Captions that the tower was not trained on would teach the DiT nothing.
        knows_natural = text.tower_folder(work).name == text.NATURAL_FOLDER
        self._natural = natural.training_captions() if knows_natural else {}
        self._views = cache(lambda size: views.load(work, dataset, size, seed))

    def draw(self, size: tuple[int, int], generator: torch.Generator, batch: int = BATCH) -> Batch:
        """Draw views of `size` with captions, of which `DROPPED_TEXT_SHARE` are empty.

        Args:
            size: width and height.
            generator: draws everything.
            batch: how many to draw at the native size; other sizes have about as many pixels.
        """
        size_views, num = self._views(size), batch_of_size(size, batch)
        white = size_views.colour == views.NAMES.index(WHITE)
        coloured = torch.rand(num, generator=generator) < COLOURED_SHARE
        picks = torch.where(coloured, _draw(~white, num, generator), _draw(white, num, generator))
        dropped = (torch.rand(num, generator=generator) < DROPPED_TEXT_SHARE).tolist()
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        captions = []
        for index, drop in zip(picks.tolist(), dropped, strict=True):
            image = self._images[int(size_views.image[index])]
            colour = views.NAMES[int(size_views.colour[index])]
            natural_captions = self._natural.get(image.concept.hexcode, ())
            caption = sample_caption(image.concept, image.style, colour, rng, natural_captions)
            captions.append("" if drop else caption)
        states, mask = self.encode(captions)
        return Batch(size_views.latents[picks].float().to(states.device), states, mask)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Text states (B, L, D) and mask (B, L) on the tower's device, cut to the longest caption."""
        device = next(self._tower.parameters()).device
        ids = torch.stack([self._tower.tokenise(caption).ids for caption in captions])
        states, mask = self._tower(ids.to(device))
        longest = int(mask.sum(1).max())
        return states[:, :longest], mask[:, :longest]


def batch_of_size(size: tuple[int, int], batch: int) -> int:
    """The number of images of `size` with as many pixels as `batch` images of the native one, or nearly."""
    return max(1, round(batch * views.NATIVE[0] * views.NATIVE[1] / (size[0] * size[1])))


def _draw(is_candidate: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw `num` indices at which `is_candidate` is true."""
    rows = is_candidate.nonzero()[:, 0]
    return rows[torch.randint(len(rows), (num,), generator=generator)]


def _loss(forward: Callable[..., Tensor], batch: Batch, generator: torch.Generator) -> Tensor:
    eps = torch.randn(batch.x0.shape, generator=generator).to(batch.x0.device)
    t = objectives.logit_normal_times(len(eps), generator, MEAN_LOGIT_TIME).to(batch.x0.device)
    x = objectives.flow_sample(batch.x0, eps, t)
    out = forward(x, NUM_TRAIN_STEPS * t, batch.states, batch.mask)
    return objectives.flow_matching_loss(out, batch.x0, eps)
