"""Stage `dit`: the diffusion transformer, trained on frozen latents and a frozen text tower with the flow objective.

Stage `dit` goes on at a steady rate for as long as it pays; stage `anneal` takes a copy from wherever that is and lets the rate
fall, which is when an image's detail comes (Hägele et al. 2024, arXiv:2405.18392), with every second batch of another size
than the native one. The text is dropped in a tenth of the samples, so that guidance has an unconditional model to lean on.
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
    Average,
    TrainingRun,
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
BATCH = 64  # the optimiser's step costs as much as 20 samples, whatever the batch
DROP_TEXT = 0.1
ANNEALED = "annealed-"
COLOURED = 0.2  # of the samples lie on another background than white
OTHER_SIZES = 0.5  # of the batches while annealing
# The mean of the times' logit. What an image shows is decided while t > 0.7 (at t = 0.6 one step back from a noised image
# finds its concept in 97 % of cases, at 0.9 in 15 %), and the usual mean of 0 spends a fifth of the samples there.
NOISINESS = 1.5


class Conditioned(nn.Module):
    """The DiT as one function of everything, which is how it is trained."""

    def __init__(self, dit: DiT):
        super().__init__()
        self.dit = dit

    def forward(self, x: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.dit(x, self.dit.modulations(timesteps), self.dit.text_key_values(states, mask))


def build(config: DiTConfig = CONFIG) -> DiT:
    """The untrained DiT, initialised as in PixArt: cross-attention and output start at zero."""
    dit = DiT(
        config, attention=BACKENDS["plain"]
    )  # at 64 tokens its backward takes two thirds of the fused one's time
    dit.draw_tables()
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
    """Train up to `num_steps` in all, at a steady rate; the state lies in `work/dit.ckpt`."""
    _train(work, work / "dit.ckpt", num_steps, warmup_stable, lambda generator: views.NATIVE, seed)


def anneal(work: Path, num_steps: int, other_sizes: bool = True, seed: int = 0) -> None:
    """Let the rate of a copy of `work/dit.ckpt` fall over `num_steps`; the copy lies in `work/annealed-STEP.ckpt`."""
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
    """The checkpoint to export: the one annealed last, or what is trained so far."""
    return max(work.glob(f"{ANNEALED}*.ckpt"), default=work / "dit.ckpt")


def size_of_batch(generator: torch.Generator) -> tuple[int, int]:
    """The native size, or for `OTHER_SIZES` of the batches one of the others."""
    if torch.rand((), generator=generator) >= OTHER_SIZES:
        return views.NATIVE
    return views.OTHERS[int(torch.randint(len(views.OTHERS), (), generator=generator))]


def _train(
    work: Path,
    checkpoint: Path,
    num_steps: int,
    schedule: Callable[[int, int, int], float],
    size_of: Callable[[torch.Generator], tuple[int, int]],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    material = Material(work, data.load(work), ClipTextTower(work / "text_encoder"), seed)
    model = Conditioned(build())
    average = Average(model, decay=0.9995)
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
        lambda _, generator: _loss(model, material.batch(size_of(generator), generator), generator), seed
    )


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the blocks' matrices, AdamW for everything else."""
    matrices = [
        p for name, p in model.named_parameters() if "transformer_blocks" in name and name.endswith("weight")
    ]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean latents x0 (B, C, h, w) float32, text states (B, L, D) and their mask (B, L)."""

    x0: Tensor
    states: Tensor
    mask: Tensor


class Material:
    """What batches are made of: views of every size, and captions written and read anew for every sample."""

    def __init__(self, work: Path, dataset: data.Dataset, tower: ClipTextTower, seed: int):
        self._images = dataset.images
        self._tower = tower
        self._views = cache(lambda size: views.load(work, dataset, size, seed))

    def batch(self, size: tuple[int, int], generator: torch.Generator) -> Batch:
        """`BATCH` views of `size` and captions for them, an empty one for `DROP_TEXT` of them."""
        found = self._views(size)
        white = found.colour == views.NAMES.index(WHITE)
        coloured = torch.rand(BATCH, generator=generator) < COLOURED
        picks = torch.where(coloured, _draw(~white, generator), _draw(white, generator))
        dropped = (torch.rand(BATCH, generator=generator) < DROP_TEXT).tolist()
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        captions = []
        for index, drop in zip(picks.tolist(), dropped, strict=True):
            image = self._images[int(found.image[index])]
            caption = sample_caption(image.concept, image.style, views.NAMES[int(found.colour[index])], rng)
            captions.append("" if drop else caption)
        states, mask = self._read(captions)
        return Batch(found.latents[picks].float(), states, mask)

    @torch.no_grad()
    def _read(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        ids = torch.stack([self._tower.tokenise(caption).ids for caption in captions])
        states, mask = self._tower(ids)
        longest = int(mask.sum(1).max())
        return states[:, :longest].bfloat16(), mask[:, :longest]


def _draw(among: Tensor, generator: torch.Generator) -> Tensor:
    """`BATCH` numbers of rows where `among` is true."""
    rows = among.nonzero()[:, 0]
    return rows[torch.randint(len(rows), (BATCH,), generator=generator)]


def _loss(model: Conditioned, batch: Batch, generator: torch.Generator) -> Tensor:
    eps = torch.randn(batch.x0.shape, generator=generator)
    t = objectives.logit_normal_times(len(eps), generator, NOISINESS)
    x = objectives.flow_sample(batch.x0, eps, t)
    out = functional_call(
        model, bfloat16_copies(model), (x.bfloat16(), NUM_TRAIN_STEPS * t, batch.states, batch.mask)
    )
    return objectives.flow_matching_loss(out, batch.x0, eps)
