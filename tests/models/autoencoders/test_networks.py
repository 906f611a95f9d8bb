"""The autoencoders have the tensors of diffusers' classes, and with the same weights give the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.loading import build
from safelight.models.autoencoders.options import ACTIVATIONS, UPSAMPLING, read_options

# Casts and schedules of later versions are announced as warnings.
pytestmark = pytest.mark.filterwarnings("ignore")

Pair = tuple[Autoencoder, Any]  # ours, diffusers'
MemoryFormat = torch.memory_format
SHAPES = ((1, 24, 40), (2, 32, 16))  # images, height, width
FORMATS = (torch.contiguous_format, torch.channels_last)
KL_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"block_out_channels": [64]},
    "four scales": {"block_out_channels": [8, 8, 16, 24], "norm_num_groups": 4},
    "published layers": {"block_out_channels": [8, 16], "norm_num_groups": 2, "layers_per_block": 2},
    "sixteen channels": {
        "block_out_channels": [8, 16], "norm_num_groups": 8, "latent_channels": 16, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "one quant conv": {"block_out_channels": [8], "norm_num_groups": 4, "use_quant_conv": False},
    "no attention": {
        "block_out_channels": [8, 16], "norm_num_groups": 4, "mid_block_add_attention": False,
        "use_post_quant_conv": False,
    },
    "other pixels": {
        "block_out_channels": [8, 8], "norm_num_groups": 4, "out_channels": 5, "act_fn": "Mish",
    },
}  # fmt: skip
TINY_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "narrow": {
        "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [12, 12, 12],
        "num_encoder_blocks": [2, 0], "num_decoder_blocks": [1, 0, 2], "latent_channels": 6,
    },
    "by three": {
        "encoder_block_out_channels": [8, 8], "num_encoder_blocks": [1, 1], "upsampling_scaling_factor": 3,
        "decoder_block_out_channels": [8, 8], "num_decoder_blocks": [1, 1], "act_fn": "SiLU",
        "upsample_fn": "bilinear", "latent_magnitude": 5, "latent_shift": 0.1, "out_channels": 4,
    },
}  # fmt: skip


def kl(**options: Any) -> Pair:
    scales = len(options["block_out_channels"])
    options |= {
        "down_block_types": ["DownEncoderBlock2D"] * scales,
        "up_block_types": ["UpDecoderBlock2D"] * scales,
    }
    return make_pair("AutoencoderKL", AutoencoderKL, options)


def tiny(**options: Any) -> Pair:
    return make_pair("AutoencoderTiny", AutoencoderTiny, options)


def make_pair(name: str, theirs_class: Callable[..., Any], options: dict[str, Any]) -> Pair:
    """Our network and diffusers', with the same random weights, those of norms and biases included."""
    ours, theirs = build(read_options({"_class_name": name, **options})), theirs_class(**options).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + 0.3 * parameter.data.abs().mean() * noise + 0.02 * noise
    assert shapes(ours) == shapes(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1).to(dtype)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal bits, and equal strides: the next layer's kernels depend on them."""
    assert torch.equal(ours, theirs)
    assert ours.stride() == theirs.stride()
    assert float(theirs.float().std()) > 1e-3


@torch.inference_mode()
def compare(pair: Pair, mode_of: Callable[[Any], Tensor], dtype: torch.dtype, order: MemoryFormat) -> None:
    ours, theirs = pair
    for network in (ours, theirs):
        network.to(dtype).to(memory_format=order)
    for images, height, width in SHAPES:
        pixels = random((images, 3, height, width), dtype)
        latents = mode_of(theirs.encode(pixels))
        assert_same(ours.encode(pixels), latents)
        assert_same(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("order", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KL_OPTIONS)
def test_a_kl_autoencoder(name: str, dtype: torch.dtype, order: MemoryFormat) -> None:
    compare(kl(**KL_OPTIONS[name]), lambda encoded: encoded.latent_dist.mode(), dtype, order)


@pytest.mark.parametrize("order", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TINY_OPTIONS)
def test_a_tiny_autoencoder(name: str, dtype: torch.dtype, order: MemoryFormat) -> None:
    compare(tiny(**TINY_OPTIONS[name]), lambda encoded: encoded.latents, dtype, order)


@pytest.mark.parametrize("act_fn", ACTIVATIONS)
@torch.inference_mode()
def test_every_activation(act_fn: str) -> None:
    for ours, theirs in (
        kl(block_out_channels=[8], norm_num_groups=2, act_fn=act_fn),
        tiny(decoder_block_out_channels=[8], num_decoder_blocks=[1], act_fn=act_fn),
    ):
        latents = random((1, 4, 4, 6), torch.float32)
        assert_same(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("upsample_fn", UPSAMPLING)
@torch.inference_mode()
def test_every_way_of_upsampling(upsample_fn: str) -> None:
    options = {"decoder_block_out_channels": [8, 8], "num_decoder_blocks": [1, 1]}
    ours, theirs = tiny(**options, upsample_fn=upsample_fn)
    latents = random((1, 4, 4, 6), torch.float32)
    assert_same(ours.decode(latents), theirs.decode(latents).sample)


def test_gradients_equal_those_of_diffusers() -> None:
    """The embedded autoencoder is trained through this class (`safelight.models.recipes.emoji.vae`)."""
    ours, theirs = tiny(**TINY_OPTIONS["by three"])
    pixels = random((2, 3, 16, 24), torch.float32)
    ours.decode(ours.encode(pixels)).square().mean().backward()
    theirs.decode(theirs.encode(pixels).latents).sample.square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad)


def test_a_seed_gives_the_weights_that_diffusers_would_have() -> None:
    """The checkpoint of the preset `tiny` is such weights, and tests know digests of its images."""
    torch.manual_seed(0)
    theirs = AutoencoderTiny(**TINY_OPTIONS["narrow"]).state_dict()
    torch.manual_seed(0)
    ours = build(read_options({"_class_name": "AutoencoderTiny", **TINY_OPTIONS["narrow"]})).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
