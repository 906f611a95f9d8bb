"""The autoencoder of latent diffusion, trained towards a Gaussian (Rombach et al. 2022, arXiv:2112.10752).

The state dict is that of diffusers' `AutoencoderKL`.

Shapes: B images, C latent channels, h x w latent pixels, H x W pixels.
"""

from torch import Tensor, nn

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.layers import DownBlock, MidBlock, UpBlock, conv3x3, group_norm
from safelight.models.autoencoders.options import KLOptions
from safelight.models.networks.layers import TypedModuleList


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) to mean and logarithm of the variance of the latents, (B, 2C, h, w)."""

    def __init__(self, options: KLOptions):
        super().__init__()
        widths = options.block_out_channels
        self.conv_in = conv3x3(options.in_channels, widths[0])
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.down_blocks = TypedModuleList(
            [DownBlock(*pair, index == len(pairs), options) for index, pair in enumerate(pairs, start=1)]
        )
        self.mid_block = MidBlock(widths[-1], options)
        self.conv_norm_out = group_norm(widths[-1], options)
        self.conv_act = nn.SiLU()
        self.conv_out = conv3x3(widths[-1], 2 * options.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(self.mid_block(x))))
        return output


class Decoder(nn.Module):
    """Latents (B, C, h, w) to pixels (B, 3, H, W)."""

    def __init__(self, options: KLOptions):
        super().__init__()
        widths = options.block_out_channels[::-1]
        self.conv_in = conv3x3(options.latent_channels, widths[0])
        pairs = list(zip((widths[0], *widths), widths, strict=False))
        self.up_blocks = TypedModuleList(
            [UpBlock(*pair, index == len(pairs), options) for index, pair in enumerate(pairs, start=1)]
        )
        self.mid_block = MidBlock(widths[0], options)
        self.conv_norm_out = group_norm(widths[-1], options)
        self.conv_act = nn.SiLU()
        self.conv_out = conv3x3(widths[-1], options.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        output: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return output


class AutoencoderKL(Autoencoder):
    """The autoencoder of PixArt, DiT and Stable Diffusion."""

    def __init__(self, options: KLOptions):
        super().__init__()
        self.options: KLOptions = options
        latent = options.latent_channels
        self.encoder = Encoder(options)
        self.decoder = Decoder(options)
        self.quant_conv = (
            nn.Conv2d(2 * latent, 2 * latent, kernel_size=1) if options.use_quant_conv else nn.Identity()
        )
        self.post_quant_conv = (
            nn.Conv2d(latent, latent, kernel_size=1) if options.use_post_quant_conv else nn.Identity()
        )

    def encode(self, pixels: Tensor) -> Tensor:
        moments: Tensor = self.quant_conv(self.encoder(pixels))
        mean, _ = moments.chunk(2, dim=1)
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.decoder(self.post_quant_conv(latents))
        return pixels
