"""Stage `dit`: the diffusion transformer, trained on frozen latents and frozen text states with the flow objective.

Pictures held out by rule are never shown. The text is dropped in a tenth of the samples, so that guidance has an
unconditional model to lean on.
"""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from rich.progress import track
from torch import Tensor, nn
from torch.func import functional_call

from models.attention import BACKENDS
from models.checkpoint import CLIP_WEIGHTS, WEIGHTS
from models.config import DiTConfig
from models.dit import DiT
from models.recipes import objectives
from models.recipes.emoji import data
from models.recipes.emoji.captions import sample_caption
from models.recipes.emoji.training import Average, Run, bfloat16_copies, warmup_stable_decay
from models.recipes.emoji.vae import LATENT_CHANNELS
from models.text import ClipTextTower
from pipeline.schedules import NUM_TRAIN_STEPS

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
CAPTIONS_PER_PICTURE = 12
DROP_TEXT = 0.1


@dataclass(frozen=True, slots=True)
class Frozen:
    """What training reads, computed once: latents (P, C, h, w), states (P, captions, L, D), mask (P, captions, L), and
    the states (L, D) and mask (L,) of no text."""

    latents: Tensor
    states: Tensor
    mask: Tensor
    no_states: Tensor
    no_mask: Tensor


class Conditioned(nn.Module):
    """The DiT as one function of everything, which is how it is trained."""

    def __init__(self, dit: DiT):
        super().__init__()
        self.dit = dit

    def forward(self, x: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.dit(x, self.dit.modulations(timesteps), self.dit.text_key_values(states, mask))


def build() -> DiT:
    """The untrained DiT, initialised as in PixArt: cross-attention and output start at zero."""
    dit = DiT(CONFIG, attention=BACKENDS["plain"])  # at 64 tokens its backward takes two thirds of the fused one's time
    dit.draw_tables()
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for linear in (dit.adaln_single.linear, *dit.adaln_single.emb["timestep_embedder"].children(), *dit.caption_projection.children()):
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=0.02)
    for layer in (*(block.attn2.to_out[0] for block in dit.transformer_blocks), dit.proj_out):
        nn.init.zeros_(layer.weight)
    return dit


def run(work: Path, num_steps: int, seed: int = 0) -> None:
    """Train; the weights lie in `work/dit.ckpt`, from where `export` takes them."""
    torch.manual_seed(seed)
    dataset = data.load(work)
    frozen = freeze(work, dataset, seed)
    seen = torch.tensor([i for i, p in enumerate(dataset.pictures) if not p.held_out_from_dit])
    model = Conditioned(build())
    average, checkpoint = Average(model, decay=0.9995), work / "dit.ckpt"
    run = Run("dit", model, optimisers(model), average, num_steps, checkpoint, warmup=200, schedule=warmup_stable_decay)
    run.train(lambda _, generator: _loss(model, frozen, seen, generator), seed)


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum) for the blocks' matrices, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if "transformer_blocks" in name and name.endswith("weight")]
    ids = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def freeze(work: Path, dataset: data.Dataset, seed: int) -> Frozen:
    """Latents of every picture and states of a pool of captions for each, by the frozen autoencoder and text tower."""
    cache = work / f"frozen-{_digest(work, seed)}.pt"
    if cache.exists():
        return Frozen(**torch.load(cache, weights_only=True))
    vae = AutoencoderTiny.from_pretrained(work / "vae").eval()
    tower = ClipTextTower(work / "text_encoder")
    rng = random.Random(seed)
    latents, states, masks = [], [], []
    with torch.inference_mode():
        for start in track(range(0, len(dataset.pictures), 16), description="freezing"):
            indices = range(start, min(start + 16, len(dataset.pictures)))
            pixels = torch.from_numpy(np.stack([dataset.on_background(i) for i in indices])).permute(0, 3, 1, 2)
            latents.append(vae.encode(pixels.float() / 127.5 - 1.0).latents * vae.config.scaling_factor)
            captions = [
                sample_caption(p.concept, p.style, rng) for i in indices for p in [dataset.pictures[i]] for _ in range(CAPTIONS_PER_PICTURE)
            ]
            state, mask = tower(torch.stack([tower.tokenise(c).ids for c in captions]))
            states.append(state.bfloat16().unflatten(0, (len(indices), -1)))
            masks.append(mask.unflatten(0, (len(indices), -1)))
        no_states, no_mask = tower(tower.tokenise("").ids[None])
    frozen = {
        "latents": torch.cat(latents),
        "states": torch.cat(states),
        "mask": torch.cat(masks),
        "no_states": no_states[0].bfloat16(),
        "no_mask": no_mask[0],
    }
    torch.save(frozen, cache)
    return Frozen(**frozen)


def _digest(work: Path, seed: int) -> str:
    """Names the cache by all that it depends on, so that a retrained part is never met with old latents or states."""
    digest = hashlib.sha256(f"{seed}/{CAPTIONS_PER_PICTURE}".encode())
    for file in (work / "vae" / WEIGHTS, work / "text_encoder" / CLIP_WEIGHTS):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _loss(model: Conditioned, frozen: Frozen, seen: Tensor, generator: torch.Generator) -> Tensor:
    picks = seen[torch.randint(len(seen), (BATCH,), generator=generator)]
    captions = torch.randint(CAPTIONS_PER_PICTURE, (BATCH,), generator=generator)
    dropped = torch.rand(BATCH, generator=generator) < DROP_TEXT
    states = torch.where(dropped[:, None, None], frozen.no_states, frozen.states[picks, captions])
    mask = torch.where(dropped[:, None], frozen.no_mask, frozen.mask[picks, captions])
    longest = int(mask.sum(1).max())
    x0 = frozen.latents[picks]
    eps = torch.randn(x0.shape, generator=generator)
    t = objectives.logit_normal_times(BATCH, generator)
    x = objectives.flow_sample(x0, eps, t)
    out = functional_call(model, bfloat16_copies(model), (x.bfloat16(), NUM_TRAIN_STEPS * t, states[:, :longest], mask[:, :longest]))
    return objectives.flow_matching_loss(out, x0, eps)
