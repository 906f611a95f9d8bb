"""Stage `decoder`: a decoder of a third of the operations, for the same latents.

The encoder is frozen, so the DiT needs no training. The decoder keeps the shape of diffusers'
`AutoencoderTiny` with fewer blocks where images are large; it is trained on latents of crops as in stage
`vae`, and also towards the present decoder's output, which is smoother than the image and so easier to match.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.autoencoders.loading import load_vae
from safelight.models.autoencoders.options import TinyOptions
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.checkpoints.writer import write_part
from safelight.models.recipes.emoji import data, vae
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    forward_function,
    native_autocast,
    warmup_stable_decay,
)
from safelight.pipeline.assembly.device import fast_dtype

FOLDER, CHECKPOINT = "vae-cheap", "decoder.ckpt"
DISTILLED_WEIGHT = 0.5  # of the error to the present decoder's output


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Width, and blocks at 1/8, 1/4, 1/2 and the whole of the image's side."""

    width: int = 40
    num_blocks: tuple[int, int, int, int] = (3, 2, 2, 0)


def options(shape: DecoderShape = DecoderShape(), scaling_factor: float = 1.0) -> TinyOptions:  # noqa: B008
    """Those of an autoencoder with the present encoder's shape and the cheap decoder's."""
    return replace(
        vae.OPTIONS,
        decoder_block_out_channels=(shape.width,) * 4,
        num_decoder_blocks=shape.num_blocks,
        scaling_factor=scaling_factor,
    )


def run(work: Path, num_steps: int, minutes: float = math.inf, seed: int = 0) -> None:
    """Train, then write `work/vae-cheap`: the present encoder with the new decoder, averaged weights."""
    torch.manual_seed(seed)
    dataset = data.load(work)
    trained = torch.tensor([i for i, image in enumerate(dataset.images) if not image.held_out_from_vae])
    present = load_present(work)
    cheap = start(present).to(memory_format=torch.channels_last)
    decode = forward_function(cheap.decoder)
    average = WeightAverage(cheap.decoder, decay=0.998)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        picks = trained[torch.randint(len(trained), (vae.BATCH,), generator=generator)]
        crops = vae.crops(dataset.rgba, picks, generator).to(memory_format=torch.channels_last)
        with torch.no_grad(), native_autocast():
            latents = present.encode(crops)
            latents = latents + vae.LATENT_NOISE * torch.randn(latents.shape, generator=generator)
            target = present.decode(latents).float()
        decoded = decode(latents.to(fast_dtype())).float()
        return vae.image_loss(decoded, crops) + DISTILLED_WEIGHT * F.l1_loss(decoded, target)

    TrainingRun(
        "decoder",
        cheap.decoder,
        vae.optimisers(cheap.decoder, cheap.options.decoder_block_out_channels[0]),
        average,
        num_steps,
        work / CHECKPOINT,
        schedule=warmup_stable_decay,
        minutes=minutes,
    ).train(loss_of_step, seed)
    cheap.decoder.load_state_dict(average.shadow, strict=False)
    write_part(work / FOLDER, cheap.options.to_diffusers(), cheap.state_dict())
    print(f"decoder: held-out PSNR {vae.psnr(cheap, dataset):.2f} dB, now {vae.psnr(present, dataset):.2f}")


def load_present(work: Path) -> AutoencoderTiny:
    """The autoencoder that stage `vae` has written."""
    present = load_vae(work / "vae", "cpu", torch.float32)
    assert isinstance(present, AutoencoderTiny)
    return present


def start(present: AutoencoderTiny, shape: DecoderShape = DecoderShape()) -> AutoencoderTiny:  # noqa: B008
    """The untrained cheap autoencoder with the encoder and the scaling factor of the present one."""
    cheap = AutoencoderTiny(options(shape, present.options.scaling_factor))
    cheap.encoder.load_state_dict(present.encoder.state_dict())
    cheap.encoder.requires_grad_(False)
    return cheap
