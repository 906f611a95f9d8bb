"""The packed MMDiT against the plain one, and its batch invariance, in mixes of sizes."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safelight.models.networks.config import MMDiTConfig
from safelight.models.networks.mmdit import MMDiT
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.mmdit import PackedMMDiT, Row
from tests.models.networks.test_mmdit import TINY

SHAPES = [(16, 16), (12, 20), (26, 10)]  # height, width
TIMES = torch.linspace(990.0, 10.0, 7)
LENGTH = 11


def plain(config: MMDiTConfig, dtype: torch.dtype = torch.float32) -> MMDiT:
    torch.manual_seed(0)
    network = MMDiT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.1)  # no zero gates
    return network.to(dtype).eval().requires_grad_(False)


def packed(config: MMDiTConfig, backend: str = "fused", dtype: torch.dtype = torch.float32) -> PackedMMDiT:
    return PackedMMDiT(plain(config, dtype), BACKENDS[backend])


packed_once = cache(packed)  # for many examples of one test


def text(config: MMDiTConfig, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random states and pooled text."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(LENGTH, config.joint_attention_dim, generator=generator).to(dtype)
    return states, torch.randn(config.pooled_projection_dim, generator=generator).to(dtype)


def latents(
    config: MMDiTConfig, seed: int, rows: int, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, config.in_channels, *shape, generator=generator).to(dtype)


def row(network: PackedMMDiT, states: Tensor, pooled: Tensor) -> Row:
    times = network.prepare_times(TIMES, (128, 128))
    return network.prepare_row(
        network.prepare_text(states, torch.ones(LENGTH, dtype=torch.bool), pooled), times
    )


@torch.inference_mode()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_rows_of_many_shapes_equal_the_plain_network(config: MMDiTConfig, backend: str) -> None:
    network, oracle = packed(config, backend), plain(config)
    shapes = [SHAPES[0], SHAPES[0], SHAPES[1], SHAPES[2], SHAPES[2]]
    texts, steps = [text(config, seed) for seed in range(5)], (0, 6, 3, 2, 5)
    xs = [
        latents(config, 0, 2, SHAPES[0]),
        latents(config, 1, 1, SHAPES[1]),
        latents(config, 2, 2, SHAPES[2]),
    ]
    rows = network.collate([row(network, states, pooled) for states, pooled in texts], shapes)
    outputs = [output for group in network.predict(xs, rows, steps) for output in group]
    inputs = [x for group in xs for x in group]
    for output, x, (states, pooled), step in zip(outputs, inputs, texts, steps, strict=True):
        plain_row = oracle.prepare_row(
            states, torch.ones(LENGTH, dtype=torch.bool), pooled, oracle.prepare_times(TIMES, (128, 128))
        )
        expected = oracle.predict(x[None], oracle.collate([plain_row]), [step])[0]
        assert float((output - expected).abs().max() / expected.abs().max()) < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["fused", "products"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_bits_of_a_row_do_not_depend_on_its_batch_mates(
    backend: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    network = packed_once(TINY["sd3.5-medium"], backend, dtype)
    config = network.config
    tested, shape = row(network, *text(config, 9, dtype)), data.draw(st.sampled_from(SHAPES))
    x = latents(config, 7, 1, shape, dtype)
    [alone] = network.predict([x], network.collate([tested], [shape]), [4])
    before, after = (data.draw(st.lists(st.integers(0, 6), max_size=5)) for _ in range(2))
    other_shapes = data.draw(
        st.lists(st.sampled_from([s for s in SHAPES if s != shape]), unique=True, max_size=2)
    )
    rows = [row(network, *text(config, seed, dtype)) for seed in range(len(other_shapes) + len(before))]
    rows += [tested, *(row(network, *text(config, seed + 50, dtype)) for seed in range(len(after)))]
    group = torch.cat(
        [latents(config, 20, len(before), shape, dtype), x, latents(config, 21, len(after), shape, dtype)]
    )
    xs = [*(latents(config, 30, 1, other, dtype) for other in other_shapes), group]
    shapes = [*other_shapes, *[shape] * len(group)]
    steps = [*[1] * len(other_shapes), *before, 4, *after]
    together = network.predict(xs, network.collate(rows, shapes), steps)
    assert torch.equal(together[-1][len(before)], alone[0])


def test_a_missing_pooled_text_is_refused() -> None:
    network = packed(TINY["sd3"])
    with pytest.raises(ValueError, match="pooled"):
        network.prepare_text(torch.zeros(LENGTH, 24), torch.ones(LENGTH, dtype=torch.bool), None)
