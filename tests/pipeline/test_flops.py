"""The closed formulas against torch's own counter, and against what is published."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.class_dit import ClassDiT, ClassDiTConfig
from models.config import DiTConfig
from models.dit import DiT
from models.mmdit import MMDiT, MMDiTConfig
from models.network import Network
from pipeline.flops import forward_flops, row_flops, text_flops, times_flops

TEXT_TOKENS, TIMES = 20, 5


def pixart(is_sized: bool) -> DiT:
    config = DiTConfig(
        num_attention_heads=3, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=3, sample_size=32, patch_size=2,
        caption_channels=96, interpolation_scale=1, is_sized=is_sized,
    )  # fmt: skip
    return DiT(config)


def sd3(dual: tuple[int, ...]) -> MMDiT:
    config = MMDiTConfig(
        sample_size=32, in_channels=4, num_layers=3, attention_head_dim=32, num_attention_heads=3, joint_attention_dim=96,
        caption_projection_dim=96, pooled_projection_dim=40, out_channels=4, pos_embed_max_size=24, dual_attention_layers=dual,
    )  # fmt: skip
    return MMDiT(config)


def labelled() -> ClassDiT:
    config = ClassDiTConfig(num_attention_heads=3, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=3, sample_size=32)
    return ClassDiT(config)


NETWORKS: dict[str, Callable[[], Network]] = {
    "pixart": lambda: pixart(is_sized=False), "pixart told the size": lambda: pixart(is_sized=True),
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
    num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=128, patch_size=2,
    caption_channels=4096, interpolation_scale=2,
)  # fmt: skip
SD35_MEDIUM = MMDiTConfig(
    sample_size=128, in_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "build", "text_tokens", "published"),
    [(PIXART_SIGMA, DiT, 300, 6.6336e12), (SD35_MEDIUM, MMDiT, 333, 11.250e12)],
    ids=["PixArt-Sigma", "SD3.5-medium"],
)
def test_at_true_size_for_1024_pixels(config: Any, build: Callable[[Any], Network], text_tokens: int, published: float) -> None:
    """The closed formula, torch's counter on our network, and the counter on diffusers' as it was once published, texts included."""
    with torch.device("meta"):
        network = build(config)
        x, timesteps = torch.empty(1, config.in_channels, 128, 128), torch.empty(1)
        width = config.joint_attention_dim if build is MMDiT else config.caption_channels
        states, mask, pooled = torch.empty(text_tokens, width), torch.empty(text_tokens, dtype=torch.bool), torch.empty(2048)
    times = network.prepare_times(timesteps, (1024, 1024))
    rows = network.collate([network.prepare_row(states, mask, pooled, times)])
    forward = forward_flops(config, 128, 128, text_tokens)
    assert forward == counted(lambda: network.predict(x, rows, [0]))
    once = text_flops(config, text_tokens) + row_flops(config, text_tokens, 1) + times_flops(config, 1)
    assert forward + once == pytest.approx(published, rel=5e-3)


def test_a_family_without_formulas_is_refused() -> None:
    for formula, sizes in ((forward_flops, (16, 16, 20)), (text_flops, (20,)), (row_flops, (20, 5)), (times_flops, (5,))):
        with pytest.raises(TypeError, match="object"):
            formula(object(), *sizes)
