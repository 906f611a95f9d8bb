"""Kernels on a device against plain computations: attention, networks, compiled blocks, int8, the decoder."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from safelight.models.denoisers import pack
from safelight.models.families.published_shapes import find_shape, list_shapes
from safelight.models.networks.interface import PackedNetwork
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.attention_probe import TOLERANCE, largest_error
from safelight.models.packed.int8 import Int8, QuantizationUnavailable
from safelight.pipeline.assembly.random_weights import random_decoder, random_network, random_text
from safelight.pipeline.engine.image_decoder import InvalidImage

logger = logging.getLogger(__name__)  # warnings, so that the report shows them

CPU = torch.device("cpu")
MIN_COSINE = {torch.float32: 0.9999, torch.bfloat16: 0.999}
HEADS = [(16, 72), (24, 64), (38, 64), (4, 64)]  # PixArt and DiT, SD3, SD3.5-large, emoji-128
SHAPES = [(8, 8), (8, 8), (4, 12), (16, 16)]  # latents of the rows


@pytest.mark.parametrize(("heads", "channels"), HEADS)
def test_attention_is_that_of_the_formula(
    device: torch.device, dtype: torch.dtype, heads: int, channels: int
) -> None:
    selected, reason = select_attention(device, dtype, heads, channels)
    logger.warning("attention of %d heads of %d: %s, because %s", heads, channels, selected.name, reason)
    for backend in (*BACKENDS.values(), selected):
        assert largest_error(backend, device, dtype, heads, channels) < TOLERANCE, backend.name


def predict(network: PackedNetwork, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The predictions for rows of several sizes and texts, as one vector in float32 on the host."""
    family, published = find_shape(name)
    times = network.prepare_times(torch.tensor([900.0, 500.0]).to(device), (64, 64))
    rows: list[Any] = []
    for index in range(len(SHAPES)):
        text = random_text(family, published, 1 + index % 2)
        length = len(text.mask) if index % 2 else min(24, len(text.mask))
        mask = torch.arange(length) < 20 if "pixart" in name and not index % 2 else text.mask[:length]
        pooled = text.pooled
        if pooled is not None:
            pooled = pooled.to(device, dtype if pooled.is_floating_point() else pooled.dtype)
        prepared = network.prepare_text(text.states[:length].to(device, dtype), mask, pooled)
        rows.append(network.prepare_row(prepared, times))
    generator = torch.Generator().manual_seed(3)
    latents = [
        torch.randn(SHAPES.count(shape), network.config.in_channels, *shape, generator=generator)
        for shape in dict.fromkeys(SHAPES)
    ]
    outputs = network.predict(
        [x.to(device, dtype) for x in latents], network.collate(rows, SHAPES), [0, 1, 1, 0]
    )
    return torch.cat([output.float().cpu().flatten() for output in outputs])


@pytest.mark.parametrize("name", list_shapes())
@torch.inference_mode()
def test_networks_are_those_of_a_processor(device: torch.device, dtype: torch.dtype, name: str) -> None:
    """Packed on the device in the dtype that serves, against float32 on the processor."""
    family, published = find_shape(f"tiny-{name}")
    plain = random_network(family, published, CPU, torch.float32)
    served = random_network(family, published, CPU, torch.float32)
    served = served.to(device, dtype)  # type: ignore[attr-defined]
    expected = predict(pack(plain), f"tiny-{name}", CPU, torch.float32)
    actual = predict(pack(served), f"tiny-{name}", device, dtype)
    assert cosine_similarity(actual, expected, dim=0) > MIN_COSINE[dtype]


@pytest.mark.parametrize("name", ["pixart-sigma", "sd3.5-medium", "dit"])
@torch.inference_mode()
def test_compiled_blocks_are_the_same(cuda: torch.device, name: str) -> None:
    """By the real compiler; tests/models/packed/test_compiled.py counts compilations on a processor."""
    family, published = find_shape(f"tiny-{name}")
    networks = [random_network(family, published, CPU, torch.float32) for _ in range(2)]
    eager, compiled = (
        pack(network.to(cuda), is_compiled=is_compiled)  # type: ignore[attr-defined]
        for network, is_compiled in zip(networks, (False, True), strict=True)
    )
    expected, actual = (predict(n, f"tiny-{name}", cuda, torch.float32) for n in (eager, compiled))
    assert cosine_similarity(actual, expected, dim=0) > MIN_COSINE[torch.float32]


@torch.inference_mode()
def test_int8_is_close_or_says_why_not(cuda: torch.device) -> None:
    try:
        layers = Int8.on(cuda, torch.bfloat16)
    except QuantizationUnavailable as error:
        pytest.skip(str(error))
    weight, x = (torch.randn(rows, 1152, device=cuda).bfloat16() for rows in (4608, 600))
    bias = torch.zeros(4608, device=cuda).bfloat16()
    expected = x.float() @ weight.float().T
    difference = layers.linear(weight, bias)(x).float() - expected
    assert difference.norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", ["pixart-sigma", "sd3-medium"])
def test_the_decoder_is_that_of_a_processor(device: torch.device, dtype: torch.dtype, name: str) -> None:
    _, published = find_shape(f"tiny-{name}")
    channels = published.configs["vae"]["latent_channels"]
    latents = torch.randn(channels, 8, 12, generator=torch.Generator().manual_seed(1))
    plain = random_decoder(published, CPU, torch.float32)
    served = random_decoder(published, CPU, torch.float32)
    served._vae.to(device, dtype)
    served._device, served._dtype = device, dtype
    images = []
    for decoder in (plain, served):
        (decoded,) = decoder.decode([latents])
        assert not isinstance(decoded, InvalidImage)
        images.append(decoded[0].astype(int))
    assert abs(images[0] - images[1]).mean() < 2.0  # of 255
