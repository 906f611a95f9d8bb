"""The denoising networks by the class that a folder's `transformer/config.json` names: built empty, then filled, strictly."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.families import CLASS_DIT, PIXART, SD3, network_class
from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import DiTConfig
from safelight.models.checkpoints.tensors import load_into
from safelight.models.networks.class_dit import ClassDiT, ClassDiTConfig
from safelight.models.networks.dit import DiT
from safelight.models.networks.interface import Network, NetworkConfig, PackedNetwork
from safelight.models.networks.mmdit import MMDiT, MMDiTConfig
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.dit import PackedDiT
from safelight.models.packed.int8 import Int8, QuantizationUnavailable
from safelight.models.packed.linear import UNQUANTIZED
from safelight.models.packed.mmdit import PackedMMDiT
from safelight.models.packed.unpacked import PerShapeNetwork

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkKind:
    """A family's network: how its configuration is read, and what is built from it."""

    read: Callable[[dict[str, Any]], NetworkConfig]
    build: Callable[[Any], nn.Module]


NETWORK_KINDS = {
    PIXART: NetworkKind(DiTConfig.from_diffusers, DiT),
    SD3: NetworkKind(MMDiTConfig.from_diffusers, MMDiT),
    CLASS_DIT: NetworkKind(ClassDiTConfig.from_diffusers, ClassDiT),
}


def read_config(folder: Path) -> NetworkConfig:
    """The configuration of the network in `folder`; raise `CheckpointError` for a class or an option that is not built."""
    return _read(folder)[0]


def build_empty(folder: Path) -> nn.Module:
    """The network in `folder` without its weights, on the meta device."""
    config, build = _read(folder)
    with torch.device("meta"):
        return build(config)


def load_network(folder: Path, device: str, dtype: torch.dtype) -> Network:
    """The network in `folder`, its weights checked tensor by tensor."""
    return cast(Network, load_into(build_empty(folder), folder, device, dtype))


def pack(network: Network, quantization: str = "none") -> PackedNetwork:
    """`network` made ready for the engine; it is taken apart and must not be used any more.

    With `quantization` "int8" its large layers are `safelight.models.packed.int8`'s; raise `QuantizationUnavailable` where they are not to be had.
    """
    if not isinstance(network, DiT | MMDiT):
        if quantization != "none":
            raise QuantizationUnavailable(
                f"quantization {quantization} is for networks whose rows are packed; a class-conditional DiT's are not"
            )
        return PerShapeNetwork(network)
    weight, config = network.proj_out.weight, network.config
    attention, why = select_attention(
        weight.device, weight.dtype, config.num_attention_heads, config.attention_head_dim
    )
    logger.info("attention by %s: %s", attention.name, why)
    layers = Int8.on(weight.device, weight.dtype) if quantization == "int8" else UNQUANTIZED
    return (
        PackedDiT(network, attention, layers)
        if isinstance(network, DiT)
        else PackedMMDiT(network, attention, layers)
    )


def example_text(config: NetworkConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    """States (L, D), mask (L,) and the pooled text of no text in particular, in the shapes that a network with `config` reads."""
    if isinstance(config, ClassDiTConfig):
        return torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    if isinstance(config, MMDiTConfig):
        length, width, pooled = (
            77 + 256,
            config.joint_attention_dim,
            torch.zeros(config.pooled_projection_dim),
        )
    else:
        assert isinstance(config, DiTConfig)
        length, width, pooled = 16, config.caption_channels, None
    return torch.ones(length, width), torch.ones(length, dtype=torch.bool), pooled


def _read(folder: Path) -> tuple[NetworkConfig, Callable[[Any], nn.Module]]:
    path = folder / "config.json"
    config = read_json(path)
    name = network_class(config)
    if not isinstance(name, str) or name not in NETWORK_KINDS:
        raise CheckpointError(
            f"{path}: class {name!r} is not supported; supported: {', '.join(NETWORK_KINDS)}"
        )
    try:
        return NETWORK_KINDS[name].read(config), NETWORK_KINDS[name].build
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
