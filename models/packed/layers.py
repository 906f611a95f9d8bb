"""Parts that the packed networks share: weights of a plain network's layers, and elementwise steps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safelight.models.networks.layers import unpatchify


def weight_and_bias(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that has both."""
    assert layer.bias is not None
    return layer.weight, layer.bias


def patch_weight_and_bias(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a patch convolution as a linear layer on the output of `patchify`."""
    weight, bias = weight_and_bias(layer)
    return weight.flatten(1), bias


def fuse_layers(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias of one linear layer whose output is the concatenated outputs of `layers`."""
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])


def patchify(x: Tensor, patch: int) -> Tensor:
    """Latents (rows, C, H, W) to (tokens of all rows, C p p), ordered as a patch convolution's weight."""
    rows, channels, height, width = x.shape
    return (
        x.view(rows, channels, height // patch, patch, width // patch, patch)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(-1, channels * patch**2)
    )


def unpatchify_groups(x: Tensor, latents: Sequence[Tensor], patch: int) -> list[Tensor]:
    """Split the tokens of all rows (T, p p C) into predictions, one tensor for each shape of latents.

    `latents` holds (rows, any, H, W) for each shape in turn.
    The result holds (rows, C, H, W) in the same order.
    """
    lengths = [len(group) * (group.shape[2] // patch) * (group.shape[3] // patch) for group in latents]
    return [
        unpatchify(torch.unflatten(tokens, 0, (len(group), -1)), group.shape[2], group.shape[3], patch)
        for tokens, group in zip(torch.split(x, lengths), latents, strict=True)
    ]


def add_gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """x + gate * change."""
    return torch.addcmul(x, gate, change)
