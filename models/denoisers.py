"""Denoising networks from a checkpoint folder: built empty, filled strictly, packed for the engine."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import find_unknown, read_known
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import WEIGHTS, load_into
from safelight.models.families.registry import find_network, list_networks, network_class, network_of
from safelight.models.families.spec import NetworkSpec
from safelight.models.networks.interface import Network, NetworkConfig, PackedNetwork
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.compiled import CompiledLayers, compile_blocks
from safelight.models.packed.int8 import Int8, QuantizationUnavailable
from safelight.models.packed.linear import UNQUANTIZED, LayerFactory
from safelight.models.packed.unpacked import PerShapeNetwork

logger = logging.getLogger(__name__)


def read_config(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> NetworkConfig:
    """The configuration of the network in `folder`.

    Raises `CheckpointError` for a class or an option that is not supported.
    """
    return _read(folder, options)[1]


def unknown_options(folder: Path) -> tuple[str, ...]:
    """The options of the network in `folder` that are not known."""
    config = read_json(folder / "config.json")
    spec = find_network(config)
    return find_unknown(spec.read_config, config) if spec else ()


def build_empty(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> nn.Module:
    """The network in `folder` without its weights, on the meta device.

    Raises `CheckpointError` as `read_config` does.
    """
    spec, config = _read(folder, options)
    with torch.device("meta"):
        return spec.build(config)


def load_network(
    folder: Path, device: str, dtype: torch.dtype, options: ReadOptions = DEFAULT_READ_OPTIONS
) -> Network:
    """The network in `folder`, with its weights on `device` in `dtype`.

    Raises `CheckpointError` unless the files hold exactly the tensors of the network.
    """
    return cast(Network, load_into(build_empty(folder, options), folder, device, dtype, WEIGHTS, options))


def pack(network: Network, quantization: str = "none", is_compiled: bool = False) -> PackedNetwork:
    """`network` in the engine's form, which takes its weights over: `network` must not be used any more.

    With `quantization` "int8" the large layers are those of `safelight.models.packed.int8`.
    With `is_compiled` the blocks are those of `safelight.models.packed.compiled`.
    Raises `QuantizationUnavailable` if the device or the network does not support that, or for both.
    """
    if is_compiled and quantization != "none":
        raise QuantizationUnavailable(f"compiled blocks need quantization none, not {quantization}")
    spec = network_of(network.config)
    weight, config = next(cast(nn.Module, network).parameters()), network.config
    if not spec.packs_rows:
        if quantization != "none":
            raise QuantizationUnavailable(
                f"quantization {quantization} is for networks whose rows are packed; {spec.title}'s are not"
            )
        if is_compiled:
            compile_blocks(network)
        return PerShapeNetwork(network, weight.device.type == "cpu", is_compiled)
    attention, why = select_attention(
        weight.device, weight.dtype, config.num_attention_heads, config.attention_head_dim
    )
    logger.info("attention by %s: %s", attention.name, why)
    return spec.pack(network, attention, _layers(weight, quantization, is_compiled))


def _layers(weight: Tensor, quantization: str, is_compiled: bool) -> LayerFactory:
    """The large layers of a network with this `weight`; arguments and errors as in `pack`."""
    if is_compiled:
        return CompiledLayers()
    return Int8.on(weight.device, weight.dtype) if quantization == "int8" else UNQUANTIZED


def example_text(
    config: NetworkConfig, num_states: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """States (L, D), mask (L,) and pooled text of a typical text for a network with `config`.

    L is `num_states`, or a typical length if that is None.
    """
    return network_of(config).example_text(config, num_states)


def _read(folder: Path, options: ReadOptions) -> tuple[NetworkSpec[Any], NetworkConfig]:
    path = folder / "config.json"
    config = read_json(path)
    spec = find_network(config)
    if spec is None:
        raise CheckpointError(
            f"{path}: class {network_class(config)!r} is not supported; "
            f"supported: {', '.join(list_networks())}"
        )
    return spec, read_known(spec.read_config, config, path, options)
