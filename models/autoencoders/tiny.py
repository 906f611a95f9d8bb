"""The small autoencoder of plain convolutions, without norms (Bohan 2023, github.com/madebyollin/taesd).

The state dict is that of diffusers' `AutoencoderTiny`.

Shapes: B images, C latent channels, h x w latent pixels, H x W pixels.
"""

import torch
from torch import Tensor, nn

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.layers import activation, conv3x3
from safelight.models.autoencoders.options import TinyOptions

LATENT_BOUND = 3.0  # the decoder's latents are squashed to less than this


class TinyBlock(nn.Module):
    """ReLU(x + three convolutions of x)."""

    def __init__(self, channels: int, act_fn: str):
        super().__init__()
        self.conv = nn.Sequential(
            conv3x3(channels, channels), activation(act_fn),
            conv3x3(channels, channels), activation(act_fn),
            conv3x3(channels, channels),
        )  # fmt: skip
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fuse(self.conv(x) + x)
        return output


class TinyEncoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, h, w); all scales but the first halve the size."""

    def __init__(self, options: TinyOptions):
        super().__init__()
        widths = options.encoder_block_out_channels
        layers: list[nn.Module] = []
        for scale, (width, blocks) in enumerate(zip(widths, options.num_encoder_blocks, strict=True)):
            layers.append(_halving(width) if scale else conv3x3(options.in_channels, width))
            layers += [TinyBlock(width, options.act_fn) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, conv3x3(widths[-1], options.latent_channels))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x.add(1).div(2))
        return output


class TinyDecoder(nn.Module):
    """Latents (B, C, h, w) to pixels (B, 3, H, W) in [-1, 1]; all scales but the last enlarge."""

    def __init__(self, options: TinyOptions):
        super().__init__()
        widths = options.decoder_block_out_channels
        layers = [conv3x3(options.latent_channels, widths[0]), activation(options.act_fn)]
        for scale, (width, blocks) in enumerate(
            zip(widths, options.num_decoder_blocks, strict=True), start=1
        ):
            layers += [TinyBlock(width, options.act_fn) for _ in range(blocks)]
            if scale == len(widths):
                layers.append(conv3x3(width, options.out_channels))
            else:
                layers.append(
                    nn.Upsample(scale_factor=options.upsampling_scaling_factor, mode=options.upsample_fn)
                )
                layers.append(nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(torch.tanh(x / LATENT_BOUND) * LATENT_BOUND)
        return output.mul(2).sub(1)


class AutoencoderTiny(Autoencoder):
    """The autoencoder of the embedded model."""

    def __init__(self, options: TinyOptions):
        super().__init__()
        self.options: TinyOptions = options
        self.encoder = TinyEncoder(options)
        self.decoder = TinyDecoder(options)

    def encode(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self.encoder(pixels)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(latents)
        return pixels


def _halving(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, stride=2, bias=False)
