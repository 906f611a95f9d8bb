"""The closed formulas equal torch's counter and published numbers."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from safelight.models.autoencoders.loading import build
from safelight.models.autoencoders.options import read_options
from safelight.models.checkpoints.json_files import spatial_compression
from safelight.models.checkpoints.options import checked
from safelight.models.families.published import CLIP_BIGG, CLIP_L, T5_XXL, VAE_4, VAE_16
from safelight.models.families.spec import PublishedPart
from safelight.models.find_checkpoint import WEIGHTS_FOLDER
from safelight.models.inspection.sizes import config_folder
from safelight.models.networks.class_dit import ClassDiT
from safelight.models.networks.config import ClassDiTConfig, DiTConfig, MMDiTConfig
from safelight.models.networks.dit import DiT
from safelight.models.networks.interface import Network
from safelight.models.networks.mmdit import MMDiT
from safelight.models.text import hf_clip, t5
from safelight.models.text.config import ClipTextConfig, T5EncoderConfig
from safelight.models.text.flops import clip_flops, open_clip_flops, t5_flops
from safelight.models.text.open_clip_folder import load_clip
from safelight.pipeline.capacity.unserved_profiles import flux_flops, sdxl_flops
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.denoiser import forward_flops, row_flops, text_flops, times_flops
from safelight.pipeline.flops.vae import decode_flops, encode_flops

TEXT_TOKENS, TIMES = 20, 5


def pixart(is_sized: bool) -> DiT:
    config = DiTConfig(
        num_attention_heads=3, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=3,
        sample_size=32, patch_size=2, caption_channels=96, interpolation_scale=1, is_sized=is_sized,
    )  # fmt: skip
    return DiT(config)


def sd3(dual: tuple[int, ...]) -> MMDiT:
    config = MMDiTConfig(
        sample_size=32, in_channels=4, num_layers=3, attention_head_dim=32, num_attention_heads=3,
        joint_attention_dim=96, caption_projection_dim=96, pooled_projection_dim=40, out_channels=4,
        pos_embed_max_size=24, dual_attention_layers=dual,
    )  # fmt: skip
    return MMDiT(config)


def labelled() -> ClassDiT:
    config = ClassDiTConfig(
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=32,
    )
    return ClassDiT(config)


NETWORKS: dict[str, Callable[[], Network]] = {
    "pixart": lambda: pixart(is_sized=False), "pixart with the image size": lambda: pixart(is_sized=True),
    "sd3": lambda: sd3(()), "sd3.5-medium": lambda: sd3((0, 1)), "dit": labelled,
}  # fmt: skip


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("size", [(16, 16), (32, 24)], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_formulas_equal_the_counter(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):  # on a processor the counter takes attention for free
        network = NETWORKS[name]()
        x, timesteps, states = torch.empty(1, 4, *size), torch.empty(TIMES), torch.empty(TEXT_TOKENS, 96)
        mask, pooled = torch.empty(TEXT_TOKENS, dtype=torch.bool), torch.empty(40)
        if isinstance(network, ClassDiT):
            pooled = torch.empty(1, dtype=torch.long)
    times = network.prepare_times(timesteps, size)
    rows = network.collate([network.prepare_row(states, mask, pooled, times)])
    assert times_flops(network.config, TIMES) == counted(lambda: network.prepare_times(timesteps, size))
    once = text_flops(network.config, TEXT_TOKENS) + row_flops(network.config, TEXT_TOKENS, TIMES)
    assert once == counted(lambda: network.prepare_row(states, mask, pooled, times))
    assert forward_flops(network.config, *size, TEXT_TOKENS) == counted(lambda: network.predict(x, rows, [2]))


PIXART_SIGMA = DiTConfig(
    num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
    sample_size=128, patch_size=2, caption_channels=4096, interpolation_scale=2,
)  # fmt: skip
SD35_MEDIUM = MMDiTConfig(
    sample_size=128, in_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
    joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16,
    pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "build", "text_tokens", "published"),
    [(PIXART_SIGMA, DiT, 300, 6.6336e12), (SD35_MEDIUM, MMDiT, 333, 11.250e12)],
    ids=["PixArt-Sigma", "SD3.5-medium"],
)
def test_at_true_size_for_1024_pixels(
    config: Any, build: Callable[[Any], Network], text_tokens: int, published: float
) -> None:
    """The formulas equal torch's counter, and with texts the published count of diffusers' network."""
    with torch.device("meta"):
        network = build(config)
        x, timesteps = torch.empty(1, config.in_channels, 128, 128), torch.empty(1)
        width = config.joint_attention_dim if build is MMDiT else config.caption_channels
        states, mask, pooled = (
            torch.empty(text_tokens, width),
            torch.empty(text_tokens, dtype=torch.bool),
            torch.empty(2048),
        )
    times = network.prepare_times(timesteps, (1024, 1024))
    rows = network.collate([network.prepare_row(states, mask, pooled, times)])
    forward = forward_flops(config, 128, 128, text_tokens)
    assert forward == counted(lambda: network.predict(x, rows, [0]))
    once = text_flops(config, text_tokens) + row_flops(config, text_tokens, 1) + times_flops(config, 1)
    assert forward + once == pytest.approx(published, rel=5e-3)


def test_a_family_without_formulas_is_refused() -> None:
    for formula, sizes in (
        (forward_flops, (16, 16, 20)),
        (text_flops, (20,)),
        (row_flops, (20, 5)),
        (times_flops, (5,)),
    ):
        with pytest.raises(TypeError, match="object"):
            cast(Callable[..., int], formula)(object(), *sizes)


EMOJI = WEIGHTS_FOLDER / "emoji-128"
T5_CONFIG = T5_XXL.config
VAE = VAE_4.config
SMALL_T5 = T5_CONFIG | {
    "d_model": 96,
    "d_kv": 16,
    "d_ff": 200,
    "num_layers": 3,
    "num_heads": 5,
    "feed_forward_proj": "relu",
}
SMALL_VAE = VAE | {
    "block_out_channels": [32, 64, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "in_channels": 4,
    "out_channels": 5,
    "latent_channels": 6,
}


@pytest.mark.parametrize(
    ("config", "num_tokens", "published"),
    [
        (T5_CONFIG, 120, 1.117e12),
        (T5_CONFIG, 300, 2.814e12),
        (T5_CONFIG, 512, 4.845e12),
        (SMALL_T5, 20, None),
    ],
    ids=["XXL 120", "XXL 300", "XXL 512", "small, not gated, of another inner width"],
)
def test_t5(config: dict[str, Any], num_tokens: int, published: float | None) -> None:
    with config_folder(config) as folder:
        network = t5.build_empty(folder)
    ids = torch.empty(1, num_tokens, dtype=torch.long, device="meta")
    formula = t5_flops(checked(T5EncoderConfig, config, minimum=0), num_tokens)
    assert formula == counted(lambda: network(ids))
    assert published is None or formula == pytest.approx(published, rel=5e-4)


@pytest.mark.parametrize(
    ("part", "expected"), [(CLIP_L, 0.0133e12), (CLIP_BIGG, 0.0979e12)], ids=["CLIP-L", "bigG"]
)
def test_clip_towers(part: PublishedPart, expected: float) -> None:
    config = checked(ClipTextConfig, part.config, minimum=0)
    tower = hf_clip.build_empty(config)
    tower.attn_mask = torch.empty(77, 77, device="meta")
    ids = torch.empty(1, 77, dtype=torch.long, device="meta")
    assert clip_flops(config) == counted(lambda: tower(ids))
    assert clip_flops(config) == pytest.approx(expected, rel=5e-3)


def test_the_embedded_tower() -> None:
    config = json.loads((EMOJI / "text_encoder" / "open_clip_config.json").read_text())["model_cfg"]
    tower = load_clip(EMOJI / "text_encoder").text.to("meta")
    ids = torch.empty(1, tower.context_length, dtype=torch.long, device="meta")
    assert open_clip_flops(config) == counted(lambda: tower(ids))


AUTOENCODERS = {
    "4 channels": (VAE, 1024), "16 channels": (VAE_16.config, 1024), "small": (SMALL_VAE, 48),
    "no attention": (SMALL_VAE | {"mid_block_add_attention": False}, 48),
    "embedded": (json.loads((EMOJI / "vae" / "config.json").read_text()), 128),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_decoding_and_encoding(name: str) -> None:
    """At the published size, and on an image that is no square."""
    config, side = AUTOENCODERS[name]
    options, scale = read_options(config), spatial_compression(config)
    for height, width in ((side, side), (side, side // 2)):
        with torch.device("meta"), torch.no_grad():
            vae = build(options)
            latents = torch.empty(1, options.latent_channels, height // scale, width // scale)
            pixels = torch.empty(1, options.in_channels, height, width)
        assert decode_flops(options, height // scale, width // scale) == counted(partial(vae.decode, latents))
        assert encode_flops(options, height, width) == counted(partial(vae.encode, pixels))


def test_a_published_autoencoder_as_published() -> None:
    assert decode_flops(read_options(VAE), 128, 128) == pytest.approx(10.470e12, rel=5e-5)
    assert decode_flops(read_options(VAE), 64, 64) == pytest.approx(2.514e12, rel=5e-4)


@pytest.mark.parametrize(("num_tokens", "published"), [(256, 69.460e12), (512, 74.378e12)])
def test_flux_equals_the_count_of_diffusers_network(num_tokens: int, published: float) -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)  # diffusers' defaults are FLUX.1's
        x, states, pooled = torch.empty(1, 4096, 64), torch.empty(1, num_tokens, 4096), torch.empty(1, 768)
        places, words, one = torch.empty(4096, 3), torch.empty(num_tokens, 3), torch.empty(1)
    count = counted(
        lambda: network(
            x,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=one,
            guidance=one,
            img_ids=places,
            txt_ids=words,
        )
    )
    assert flux_flops(128, 128, num_tokens) == pytest.approx(count, rel=1e-4)
    assert flux_flops(128, 128, num_tokens) == pytest.approx(published, rel=5e-4)


def test_sdxl_equals_the_count_of_diffusers_network() -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=128, block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        x, states, one = torch.empty(1, 4, 128, 128), torch.empty(1, 77, 2048), torch.empty(1)
        more = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
    assert sdxl_flops(128, 128) == pytest.approx(
        counted(lambda: network(x, one, states, added_cond_kwargs=more)), rel=5e-4
    )
    with pytest.raises(InvalidParams, match="512x512"):
        sdxl_flops(64, 64)
