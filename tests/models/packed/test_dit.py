"""The packed transformer against the plain one, and its batch invariance, in mixed batches."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safelight.models.networks.config import DiTConfig
from safelight.models.networks.dit import DiT
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.dit import PackedDiT, Row
from safelight.models.packed.layout import Layout, common_runs
from tests.dtypes import DTYPES

CONFIG = DiTConfig(
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=3,
    sample_size=16,
    patch_size=2,
    caption_channels=24,
    interpolation_scale=1,
)
SHAPES = [(16, 16), (12, 20), (20, 12), (6, 4)]  # height, width
TIMES = torch.linspace(990.0, 10.0, 7)
# For each batch-mate: text length, unmasked tokens, step.
BATCH_MATES = st.lists(
    st.tuples(st.sampled_from([16, 32]), st.integers(1, 16), st.integers(0, 6)), max_size=6
)


def plain(dtype: torch.dtype = torch.float32) -> DiT:
    torch.manual_seed(0)
    dit = DiT(CONFIG)
    dit.init_tables()
    return dit.to(dtype).eval().requires_grad_(False)


def packed(backend: str = "fused", dtype: torch.dtype = torch.float32) -> PackedDiT:
    return PackedDiT(plain(dtype), BACKENDS[backend])


packed_once = cache(packed)  # for many examples of one test


def text(
    seed: int, length: int, num_unmasked: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(length, CONFIG.caption_channels, generator=generator).to(dtype)
    return states, torch.arange(length) < num_unmasked


def latents(seed: int, rows: int, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CONFIG.in_channels, *shape, generator=generator).to(dtype)


def row(network: PackedDiT, states: Tensor, mask: Tensor) -> Row:
    return network.prepare_row(
        network.prepare_text(states, mask, None), network.prepare_times(TIMES, (128, 128))
    )


def expected(x: Tensor, states: Tensor, mask: Tensor, step: int) -> Tensor:
    dit = plain()
    prediction: Tensor = dit(
        x[None], dit.modulations(TIMES[step : step + 1]), dit.text_key_values(states[None], mask[None])
    )[0]
    return prediction


@torch.inference_mode()
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_many_shapes_and_texts_equal_the_plain_network(backend: str) -> None:
    network = packed(backend)
    shapes = [SHAPES[0], SHAPES[0], SHAPES[0], SHAPES[1], SHAPES[1], SHAPES[3]]
    texts = [text(1, 16, 3), text(2, 16, 16), text(3, 32, 20), text(4, 16, 9), text(5, 7, 7), text(6, 16, 1)]
    steps = (0, 6, 3, 2, 2, 5)
    xs = [latents(0, 3, SHAPES[0]), latents(1, 2, SHAPES[1]), latents(2, 1, SHAPES[3])]
    rows = network.collate([row(network, states, mask) for states, mask in texts], shapes)
    outputs = [output for group in network.predict(xs, rows, steps) for output in group]
    inputs = [x for group in xs for x in group]
    for output, x, (states, mask), step in zip(outputs, inputs, texts, steps, strict=True):
        torch.testing.assert_close(output, expected(x, states, mask, step), atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["fused", "products"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_bits_of_a_row_do_not_depend_on_its_batch_mates(
    backend: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    network = packed_once(backend, dtype)
    shape = data.draw(st.sampled_from(SHAPES))
    tested, x = row(network, *text(9, 16, 5, dtype)), latents(7, 1, shape, dtype)
    [alone] = network.predict([x], network.collate([tested], [shape]), [4])
    before, after = data.draw(BATCH_MATES), data.draw(BATCH_MATES)
    other_shapes = data.draw(
        st.lists(st.sampled_from([s for s in SHAPES if s != shape]), unique=True, max_size=3)
    )
    group_rows = [
        *(row(network, *text(k, length, count, dtype)) for k, (length, count, _) in enumerate(before)),
        tested,
        *(row(network, *text(k + 50, length, count, dtype)) for k, (length, count, _) in enumerate(after)),
    ]
    group = torch.cat([latents(20, len(before), shape, dtype), x, latents(21, len(after), shape, dtype)])
    xs = [*(latents(30, 1, other, dtype) for other in other_shapes), group]
    rows = [*[tested] * len(other_shapes), *group_rows]
    steps = [*[1] * len(other_shapes), *(step for *_, step in before), 4, *(step for *_, step in after)]
    shapes = [*other_shapes, *[shape] * len(group_rows)]
    together = network.predict(xs, network.collate(rows, shapes), steps)
    assert torch.equal(together[-1][len(before)], alone[0])


def test_runs_are_adjacent_rows_of_equal_length() -> None:
    layout = Layout((3, 3, 5, 3))
    assert [(run.rows, run.tokens, run.length) for run in layout.runs] == [
        (slice(0, 2), slice(0, 6), 3), (slice(2, 3), slice(6, 11), 5), (slice(3, 4), slice(11, 14), 3)
    ]  # fmt: skip
    tokens = torch.arange(14.0)[:, None]
    assert torch.equal(layout.apply_by_row(lambda x, shift: x + shift, [tokens], [torch.zeros(4, 1)]), tokens)
    runs = common_runs((layout, Layout((1, 2, 2, 2))))
    assert [(q.tokens, k.tokens) for q, k in runs] == [
        (slice(0, 3), slice(0, 1)),
        (slice(3, 6), slice(1, 3)),
        (slice(6, 11), slice(3, 5)),
        (slice(11, 14), slice(5, 7)),
    ]
