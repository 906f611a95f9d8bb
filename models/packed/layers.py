"""What the packed networks share: layers of a plain network taken apart, and the elementwise steps between products."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safelight.models.networks.layers import unpatchify


def parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer."""
    return layer.weight, layer.bias


def joined(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """One layer that answers for several, one after another in its output."""
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])


def patches(x: Tensor, patch: int) -> Tensor:
    """Latents (rows, C, H, W) to (tokens of all rows, C p p), in the order of a patch convolution's weight."""
    rows, channels, height, width = x.shape
    return (
        x.view(rows, channels, height // patch, patch, width // patch, patch)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(-1, channels * patch**2)
    )


def unpatched(x: Tensor, latents: Sequence[Tensor], patch: int) -> list[Tensor]:
    """Tokens of all rows (T, p p C) to predictions (rows, C, H, W), one for each of `latents` (rows, any, H, W), in order."""
    lengths = [len(each) * (each.shape[2] // patch) * (each.shape[3] // patch) for each in latents]
    return [
        unpatchify(own.unflatten(0, (len(each), -1)), *each.shape[2:], patch)
        for own, each in zip(x.split(lengths), latents, strict=True)
    ]


def gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + gate * change."""
    return torch.addcmul(x, gate, change)
