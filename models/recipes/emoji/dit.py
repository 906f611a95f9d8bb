"""Stages `dit` and `anneal`: train the diffusion transformer on frozen latents and a frozen text tower.

The objective is flow matching. Stage `dit` trains at a constant learning rate for as long as it helps.
Stage `anneal` takes a copy of its checkpoint and lowers the rate to zero, which brings out detail (Hägele et
al. 2024, arXiv:2405.18392); about half of its batches have another size than the native one.
The text is dropped in a tenth of the samples, so that guidance has an unconditional prediction.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from safelight.models.networks.attention import BACKENDS
from safelight.models.networks.config import DiTConfig
from safelight.models.networks.dit import DiT
from safelight.models.recipes import objectives
from safelight.models.recipes.emoji import data, views
from safelight.models.recipes.emoji.captions import WHITE, sample_caption
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    bfloat16_copies,
    one_minus_sqrt,
    warmup_stable,
)
from safelight.models.recipes.emoji.vae import LATENT_CHANNELS
from safelight.models.text.clip import ClipTextTower
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
OTHER_SIZES_SHARE = 0.5  # the share of batches while annealing
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
        out: Tensor = self.dit(x, self.dit.modulations(timesteps), self.dit.text_key_values(states, mask))
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


def run(work: Path, num_steps: int, seed: int = 0) -> None:
    """Train to `num_steps` in total at a constant learning rate; the state is in `work/dit.ckpt`."""
    _train(work, work / "dit.ckpt", num_steps, warmup_stable, lambda generator: views.NATIVE, seed)


def anneal(work: Path, num_steps: int, other_sizes: bool = True, seed: int = 0) -> None:
    """Train a copy of `work/dit.ckpt` for `num_steps` more at a falling rate, as `work/annealed-STEP.ckpt`.

    STEP is the number of steps of `dit.ckpt`; an existing file is resumed. Without `other_sizes` all batches
    have the native size.
    """
    first = int(torch.load(work / "dit.ckpt", weights_only=True)["step"])
    checkpoint = work / f"{ANNEALED}{first:06d}.ckpt"
    if not checkpoint.exists():
        shutil.copy(work / "dit.ckpt", checkpoint)
    sizes = size_of_batch if other_sizes else lambda generator: views.NATIVE
    _train(
        work,
        checkpoint,
        first + num_steps,
        lambda step, last, _: one_minus_sqrt(step, last, first),
        sizes,
        seed,
    )


def latest(work: Path) -> Path:
    """The checkpoint to export: the one annealed from the latest step, or the unannealed one."""
    return max(work.glob(f"{ANNEALED}*.ckpt"), default=work / "dit.ckpt")


def size_of_batch(generator: torch.Generator) -> tuple[int, int]:
    """Draw the size (width, height) of a batch: for `OTHER_SIZES_SHARE` of the batches not the native one."""
    if torch.rand((), generator=generator) >= OTHER_SIZES_SHARE:
        return views.NATIVE
    return views.OTHERS[int(torch.randint(len(views.OTHERS), (), generator=generator))]


def _train(
    work: Path,
    checkpoint: Path,
    num_steps: int,
    schedule: Callable[[int, int, int], float],
    draw_size: Callable[[torch.Generator], tuple[int, int]],
    seed: int,
) -> None:
    """Train the DiT.

    Args:
        work: the recipe's folder.
        checkpoint: the file to resume from and to save to.
        num_steps: the total number of steps.
        schedule: the learning-rate factor by (step, num_steps, warmup).
        draw_size: draws the size (width, height) of a batch.
        seed: of weights and batches.
    """
    torch.manual_seed(seed)
    batches = TrainingBatches(work, data.load(work), ClipTextTower(work / "text_encoder"), seed)
    model = ConditionedDiT(build())
    average = WeightAverage(model, decay=0.9995)
    run = TrainingRun(
        checkpoint.stem,
        model,
        optimisers(model),
        average,
        num_steps,
        checkpoint,
        warmup=200,
        schedule=schedule,
    )
    run.train(
        lambda _, generator: _loss(model, batches.draw(draw_size(generator), generator), generator), seed
    )


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the blocks' matrices, AdamW for all other parameters."""
    matrices = [
        p for name, p in model.named_parameters() if "transformer_blocks" in name and name.endswith("weight")
    ]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
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
        self._views = cache(lambda size: views.load(work, dataset, size, seed))

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> Batch:
        """Draw `BATCH` views of `size` with captions, of which `DROPPED_TEXT_SHARE` are empty."""
        size_views = self._views(size)
        white = size_views.colour == views.NAMES.index(WHITE)
        coloured = torch.rand(BATCH, generator=generator) < COLOURED_SHARE
        picks = torch.where(coloured, _draw(~white, generator), _draw(white, generator))
        dropped = (torch.rand(BATCH, generator=generator) < DROPPED_TEXT_SHARE).tolist()
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        captions = []
        for index, drop in zip(picks.tolist(), dropped, strict=True):
            image = self._images[int(size_views.image[index])]
            colour = views.NAMES[int(size_views.colour[index])]
            caption = sample_caption(image.concept, image.style, colour, rng)
            captions.append("" if drop else caption)
        states, mask = self._encode(captions)
        return Batch(size_views.latents[picks].float(), states, mask)

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Text states (B, L, D) and mask (B, L), cut to the longest caption."""
        ids = torch.stack([self._tower.tokenise(caption).ids for caption in captions])
        states, mask = self._tower(ids)
        longest = int(mask.sum(1).max())
        return states[:, :longest].bfloat16(), mask[:, :longest]


def _draw(is_candidate: Tensor, generator: torch.Generator) -> Tensor:
    """Draw `BATCH` indices at which `is_candidate` is true."""
    rows = is_candidate.nonzero()[:, 0]
    return rows[torch.randint(len(rows), (BATCH,), generator=generator)]


def _loss(model: ConditionedDiT, batch: Batch, generator: torch.Generator) -> Tensor:
    eps = torch.randn(batch.x0.shape, generator=generator)
    t = objectives.logit_normal_times(len(eps), generator, MEAN_LOGIT_TIME)
    x = objectives.flow_sample(batch.x0, eps, t)
    out = functional_call(
        model, bfloat16_copies(model), (x.bfloat16(), NUM_TRAIN_STEPS * t, batch.states, batch.mask)
    )
    return objectives.flow_matching_loss(out, batch.x0, eps)
