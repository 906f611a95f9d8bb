"""The blocks of an `AutoencoderKL`, and the activations of both autoencoders; module names are diffusers'.

Shapes: B images, C channels, H x W pixels of a layer, N = HW.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from safelight.models.autoencoders.options import KLOptions
from safelight.models.networks.layers import TypedModuleList, merge_heads, split_heads

NORM_EPS = 1e-6
ACTIVATION_CLASSES: Mapping[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
}


def activation(name: str) -> nn.Module:
    """The activation called `name` in a configuration."""
    return ACTIVATION_CLASSES[name.lower()]()


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def group_norm(channels: int, options: KLOptions) -> nn.GroupNorm:
    """The norm before every convolution and before attention."""
    return nn.GroupNorm(options.norm_num_groups, channels, eps=NORM_EPS)


class ResidualBlock(nn.Module):
    """x + conv2(act(norm2(conv1(act(norm1(x)))))), with x projected where the channels change."""

    def __init__(self, in_channels: int, out_channels: int, options: KLOptions):
        super().__init__()
        self.norm1 = group_norm(in_channels, options)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels, options)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.nonlinearity = activation(options.act_fn)
        self.conv_shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(x)))
        hidden = self.conv2(self.nonlinearity(self.norm2(hidden)))
        output: Tensor = self.conv_shortcut(x) + hidden
        return output


class PixelAttention(nn.Module):
    """Self-attention of one head among all pixels, with a residual connection."""

    def __init__(self, channels: int, options: KLOptions):
        super().__init__()
        self.group_norm = group_norm(channels, options)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)  # B N C
        query, key, value = (split_heads(project(tokens), 1) for project in (self.to_q, self.to_k, self.to_v))
        mixed = self.to_out(merge_heads(F.scaled_dot_product_attention(query, key, value)))
        output: Tensor = mixed.transpose(1, 2).unflatten(2, x.shape[2:]) + x
        return output


class Downsample(nn.Module):
    """A convolution of stride 2, padded below and on the right: (B, C, H, W) to (B, C, H/2, W/2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return output


class Upsample(nn.Module):
    """Every pixel four times, then a convolution: (B, C, H, W) to (B, C, 2H, 2W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return output


class ScaleBlock(nn.Module):
    """The residual blocks of one scale of the encoder or the decoder."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, options: KLOptions):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_layers
        self.resnets = TypedModuleList(
            [ResidualBlock(*pair, options) for pair in zip(widths, widths[1:], strict=False)]
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        return x


class DownBlock(ScaleBlock):
    """One scale of the encoder; all but the last halve the size."""

    def __init__(self, in_channels: int, out_channels: int, is_last: bool, options: KLOptions):
        super().__init__(in_channels, out_channels, options.layers_per_block, options)
        self.downsamplers = nn.Sequential(*([] if is_last else [Downsample(out_channels)]))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.downsamplers(super().forward(x))
        return output


class UpBlock(ScaleBlock):
    """One scale of the decoder, one layer deeper than the encoder's; all but the last double the size."""

    def __init__(self, in_channels: int, out_channels: int, is_last: bool, options: KLOptions):
        super().__init__(in_channels, out_channels, options.layers_per_block + 1, options)
        self.upsamplers = nn.Sequential(*([] if is_last else [Upsample(out_channels)]))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.upsamplers(super().forward(x))
        return output


class MidBlock(nn.Module):
    """Two residual blocks at the smallest scale, and attention between them."""

    def __init__(self, channels: int, options: KLOptions):
        super().__init__()
        attends = options.mid_block_add_attention
        self.attentions = nn.Sequential(*([PixelAttention(channels, options)] if attends else []))
        self.resnets = TypedModuleList([ResidualBlock(channels, channels, options) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.resnets
        output: Tensor = after(self.attentions(before(x)))
        return output
