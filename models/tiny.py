"""The `tiny` preset: a whole checkpoint folder of random weights from a fixed seed, for tests."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from safelight.models.autoencoders.options import TinyOptions
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.checkpoints.writer import FLOW_SCHEDULER, write_clip, write_index, write_part
from safelight.models.networks.config import DiTConfig
from safelight.models.networks.dit import DiT
from safelight.models.text.open_clip_classes import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

WIDTH, CONTEXT = 16, 15
# Of the decoder's last layer: without them all pixels of all images would be clamped to black.
CONTRAST, BRIGHTNESS = 20.0, (-0.35, 1.24, 0.73)
VISION = {"image_size": 16, "layers": 1, "width": WIDTH, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 1}


def write_tiny(folder: Path, seed: int = 0) -> None:
    """Write a random checkpoint of the `pixart-clip` family into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = DiTConfig(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
            sample_size=8, patch_size=2, caption_channels=WIDTH, interpolation_scale=1,
        )  # fmt: skip
        dit = DiT(config)
        dit.init_tables()
        options = TinyOptions(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=4,
            num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
        )  # fmt: skip
        vae = AutoencoderTiny(options)
        _brighten(vae)
        clip = CustomTextCLIP(WIDTH, CLIPVisionCfg(**VISION), CLIPTextCfg(**TEXT))
    write_part(folder / "transformer", config.to_diffusers(), dit.state_dict())
    write_part(folder / "vae", options.to_diffusers(), vae.state_dict())
    write_clip(folder / "text_encoder", WIDTH, VISION, TEXT, clip.state_dict())
    write_index(folder, FLOW_SCHEDULER)


@torch.no_grad()
def _brighten(vae: AutoencoderTiny) -> None:
    """Spread the decoder's pixels over the range of colours."""
    last = cast(nn.Conv2d, vae.decoder.layers[-1])
    assert last.bias is not None
    last.weight.mul_(CONTRAST)
    last.bias.copy_(torch.tensor(BRIGHTNESS))
