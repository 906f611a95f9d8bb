"""Stage `vae`: train an 8x autoencoder, an `AutoencoderTiny`, on 64x64 crops.

The latents are trained towards zero mean and unit variance in every channel, so that a stock pipeline needs
only one scalar `scaling_factor` and no shift. A little noise on them before decoding makes the decoder robust
to the denoiser's small errors.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.autoencoders.options import TinyOptions
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.checkpoints.writer import write_part
from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.muon import FilterMuon
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    forward_function,
    warmup_stable_decay,
)
from safelight.pipeline.assembly.device import fast_dtype

WIDTH, LATENT_CHANNELS = 48, 8
CROP, BATCH = 64, 16
LATENT_NOISE = 0.05  # standard deviation
MSE_WEIGHT = 5.0  # makes the three terms about equal at 27 dB
MOMENT_WEIGHT = 0.02
WHITE_SHARE = 0.5  # the share of crops on white; the others have a random plain background

OPTIONS = TinyOptions(
    encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4,
    latent_channels=LATENT_CHANNELS, num_encoder_blocks=(1, 3, 3, 3), num_decoder_blocks=(3, 3, 3, 1),
)  # fmt: skip


def build() -> AutoencoderTiny:
    """Build the untrained autoencoder (1.4 M parameters)."""
    return AutoencoderTiny(OPTIONS)


def run(work: Path, num_steps: int, seed: int = 0) -> None:
    """Train, then write `work/vae` (diffusers layout, float32, averaged weights, measured scaling factor)."""
    torch.manual_seed(seed)
    dataset = data.load(work)
    trained = torch.tensor([i for i, image in enumerate(dataset.images) if not image.held_out_from_vae])
    vae = build().to(memory_format=torch.channels_last)
    average = WeightAverage(vae, decay=0.998)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        picks = trained[torch.randint(len(trained), (BATCH,), generator=generator)]
        x = crops(dataset.rgba, picks, generator).to(memory_format=torch.channels_last)
        return _loss(vae, x, generator)

    TrainingRun(
        "vae",
        vae,
        optimisers(vae, WIDTH),
        average,
        num_steps,
        work / "vae.ckpt",
        schedule=warmup_stable_decay,
    ).train(loss_of_step, seed)
    vae.load_state_dict(average.shadow, strict=False)
    options = replace(OPTIONS, scaling_factor=_scaling_factor(vae, dataset, trained))
    write_part(work / "vae", options.to_diffusers(), vae.state_dict())
    print(f"vae: scaling_factor {options.scaling_factor:.4f}, held-out PSNR {psnr(vae, dataset):.2f} dB")


def optimisers(vae: nn.Module, width: int) -> list[torch.optim.Optimizer]:
    """Muon for the filters between hidden layers, AdamW for biases and the layers at pixels and latents."""
    inner = [p for p in vae.parameters() if p.ndim == 4 and min(p.shape[:2]) == width]
    ids = {id(p) for p in inner}
    others = [p for p in vae.parameters() if id(p) not in ids]
    return [
        FilterMuon(inner, lr=2e-3, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def psnr(vae: AutoencoderTiny, dataset: data.Dataset) -> float:
    """Mean PSNR in dB of decode(encode(x)) over the held-out images on white."""
    held_out = [i for i, image in enumerate(dataset.images) if image.held_out_from_vae]
    values = []
    for index in held_out:
        x = torch.from_numpy(dataset.on_background(index)).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        with torch.inference_mode():
            y = vae.decode(vae.encode(x)).clamp(-1, 1)
        values.append(10.0 * torch.log10(4.0 / (x - y).square().mean()).item())
    return float(np.mean(values))


def _loss(vae: AutoencoderTiny, x: Tensor, generator: torch.Generator) -> Tensor:
    latents = forward_function(vae.encoder)(x.to(fast_dtype()))
    noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator).to(latents)
    y = forward_function(vae.decoder)(noisy).float()
    mean, variance = latents.float().mean((0, 2, 3)), latents.float().var((0, 2, 3))
    moments = (mean.square() + variance.clamp_min(1e-4).log().square()).mean()
    loss: Tensor = image_loss(y, x) + MOMENT_WEIGHT * moments
    return loss


def image_loss(y: Tensor, x: Tensor) -> Tensor:
    """Absolute and squared error of decoded images y to x, both (B, 3, H, W), and that of their gradients."""
    return F.l1_loss(y, x) + MSE_WEIGHT * F.mse_loss(y, x) + F.l1_loss(_gradient(y), _gradient(x))


def _gradient(x: Tensor) -> Tensor:
    return torch.cat([(x[..., 1:, :-1] - x[..., :-1, :-1]), (x[..., :-1, 1:] - x[..., :-1, :-1])], dim=1)


def crops(rgba: np.ndarray, picks: Tensor, generator: torch.Generator) -> Tensor:
    """Random 64x64 crops over random plain backgrounds, half of them mirrored: (B, 3, 64, 64) in [-1, 1]."""
    max_corner = data.SIZE - CROP
    corners = torch.randint(max_corner + 1, (len(picks), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(picks), generator=generator) < 0.5).tolist()
    white = (torch.rand(len(picks), generator=generator) < WHITE_SHARE).tolist()
    colours = torch.randint(256, (len(picks), 3), generator=generator).tolist()
    parts = []
    for index, (y, x), mirror, on_white, colour in zip(
        picks.tolist(), corners, mirrored, white, colours, strict=True
    ):
        window = rgba[index, y : y + CROP, x : x + CROP]
        flat = data.composite(window, (255, 255, 255) if on_white else tuple(colour))
        parts.append(flat[:, ::-1] if mirror else flat)
    pixels = torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1.0


def _scaling_factor(vae: AutoencoderTiny, dataset: data.Dataset, trained: Tensor) -> float:
    """1 over the standard deviation of the latents, over about 256 training images."""
    sample = trained[:: max(1, len(trained) // 256)].tolist()
    pixels = np.stack([dataset.on_background(i) for i in sample])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.inference_mode():
        latents = torch.cat([vae.encode(part) for part in torch.split(x, 16)])
    return 1.0 / float(latents.std())
