"""Builds the parts of a published checkpoint with random weights: its shape without its files.

Tensors are made on the device in the dtype that serves, so that a large model needs no copy of its weights.
"""

import math
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.loading import build
from safelight.models.autoencoders.options import read_options
from safelight.models.denoisers import pack
from safelight.models.families.spec import Family, PublishedCheckpoint
from safelight.models.networks.interface import Network
from safelight.pipeline.assembly.device import keep_precision
from safelight.pipeline.engine.image_decoder import ImageDecoder
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import StageCost, TextReport

SEED = 0
PACKING = 1.5  # memory at the peak of packing a network over that of its weights: some are copied, then freed

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def random_runner(
    family: Family,
    published: PublishedCheckpoint,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str = "none",
    is_compiled: bool = False,
) -> StepRunner:
    """The denoising network of a published checkpoint, ready to run.

    Args:
        family: The checkpoint's.
        published: The checkpoint.
        device: Where the network runs.
        dtype: Of its weights.
        quantization: As in `safelight.models.denoisers.pack`, as is `is_compiled`.
        is_compiled: Whether the steps of its blocks are compiled.
    """
    keep_precision()
    network = random_network(family, published, device, dtype)
    return StepRunner.on(pack(network, quantization, is_compiled), dtype, device)


def random_network(
    family: Family, published: PublishedCheckpoint, device: torch.device, dtype: torch.dtype
) -> Network:
    """The plain denoising network of a published checkpoint."""
    return cast(Network, fill_randomly(_empty_network(family, published), device, dtype))


def random_decoder(published: PublishedCheckpoint, device: torch.device, dtype: torch.dtype) -> ImageDecoder:
    """The image decoder of a published checkpoint."""
    vae = fill_randomly(_empty_vae(published), device, dtype)
    vae.to(memory_format=torch.channels_last)  # as in `assembly.decoder`
    return ImageDecoder(vae, dtype, device)


def random_text(family: Family, published: PublishedCheckpoint, seed: int) -> TextStates:
    """The states of a text of full length, as the family's encoders would give them, or a class."""
    config = family.network.read_config(published.configs["transformer"])
    states, mask, pooled = family.network.example_text(
        config, family.conditioning.num_states(published.configs)
    )
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(states.shape, generator=generator)
    if pooled is not None:
        is_label = not pooled.is_floating_point()
        pooled = torch.full_like(pooled, seed) if is_label else torch.randn(pooled.shape, generator=generator)
    return TextStates(states, mask, pooled, TextReport(len(mask), False, ()), StageCost(0.0, 0))


def needed_bytes(family: Family, published: PublishedCheckpoint, dtype: torch.dtype) -> int:
    """About the memory that building both parts takes, before any image is under way."""
    network, vae = _empty_network(family, published), _empty_vae(published)
    return int(dtype.itemsize * (PACKING * _num_values(network) + _num_values(vae)))


def fill_randomly(module: AnyModule, device: torch.device, dtype: torch.dtype) -> AnyModule:
    """Give a module of the meta device weights with which numbers keep their size from layer to layer.

    Products have normal weights that keep the variance, norms are 1 and biases 0. On a processor the same
    module always gets the same weights.
    """
    generator = torch.Generator().manual_seed(SEED) if device.type == "cpu" else None
    tensors: dict[str, Tensor] = {}
    for name, empty in module.state_dict().items():
        if empty.ndim < 2:
            value = 1.0 if name.endswith("weight") else 0.0
            tensors[name] = torch.full(empty.shape, value, device=device, dtype=dtype)
        else:
            tensor = torch.empty(empty.shape, device=device, dtype=dtype)
            fan_in = math.prod(empty.shape[1:])
            tensors[name] = tensor.normal_(std=fan_in**-0.5, generator=generator)
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def _empty_network(family: Family, published: PublishedCheckpoint) -> nn.Module:
    with torch.device("meta"):
        return family.network.build(family.network.read_config(published.configs["transformer"]))


def _empty_vae(published: PublishedCheckpoint) -> Autoencoder:
    with torch.device("meta"):
        return build(read_options(published.configs["vae"]))


def _num_values(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())
