"""xformers' back end as far as a machine without CUDA can tell: its masks, the call's arguments, and when it is not taken."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safelight.models import cuda_runtime
from safelight.models.packed import xformers_attention
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.layout import Layout
from safelight.models.packed.xformers_attention import (
    XformersAttention,
    XformersUnavailable,
    import_ops,
    load_xformers,
)


class Pretended(str):
    """A device that is called a GPU and computes on the processor."""

    type = "cuda"


PRETENDED: Any = Pretended("cpu")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=6)


def by_materialised_mask(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any) -> Tensor:
    """What xformers documents its call to be: (1, T, A, K), the scores of all tokens plus the mask written out."""
    bias = attn_bias.materialize((1, q.shape[2], q.shape[1], k.shape[1]), dtype=torch.float32)
    heads_first = (each.transpose(1, 2) for each in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=bias).transpose(1, 2)


@pytest.fixture(scope="module")
def ops() -> Any:
    pytest.importorskip("xformers")
    return SimpleNamespace(fmha=import_ops().fmha, memory_efficient_attention=by_materialised_mask)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, data=st.data())
def test_its_mask_lets_each_row_see_its_own_keys_alone(
    ops: Any, rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    queries, keys = (Layout(lengths) for lengths in zip(*rows, strict=True))
    said = [
        data.draw(st.integers(1, length)) for length in keys.lengths
    ]  # a text says something, then nothing
    mask = torch.cat([torch.arange(length) < own for length, own in zip(keys.lengths, said, strict=True)])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(each.num_tokens, 2, 8, generator=generator) for each in (queries, keys, keys))
    for own_mask in (mask, None):
        ours, wanted = (
            each(q, k, v, each.plan(queries, keys, own_mask, q.dtype))
            for each in (XformersAttention(ops), BACKENDS["plain"])
        )
        assert torch.allclose(ours, wanted, atol=1e-5)


def test_it_is_not_taken_on_a_processor() -> None:
    with pytest.raises(XformersUnavailable, match="CUDA only"):
        load_xformers(CPU, torch.bfloat16, 4, 64)


def test_without_it_torch_is_taken_and_the_reason_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers_attention.importlib.util, "find_spec", lambda name: None)
    attention, why = select_attention(CUDA, torch.bfloat16, 16, 72)
    assert (attention.name, why) == (
        "fused",
        "xformers is not installed: in the checkout, pip install -e '.[cuda]'",
    )


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            lambda q, k, v, attn_bias: torch.zeros_like(q),
            "xformers differs from plain attention by 1 of its largest value",
        ),
        (
            lambda q, k, v, attn_bias: q.no_such_thing,
            "a call of xformers failed: 'Tensor' object has no attribute 'no_such_thing'",
        ),
    ],
    ids=["wrong", "failing"],
)
def test_a_call_that_fails_or_is_wrong_is_found_out(
    ops: Any, monkeypatch: pytest.MonkeyPatch, answer: Any, why: str
) -> None:
    broken = SimpleNamespace(fmha=ops.fmha, memory_efficient_attention=answer)
    monkeypatch.setattr(xformers_attention, "import_ops", lambda: broken)
    with pytest.raises(XformersUnavailable) as refused:
        load_xformers(PRETENDED, torch.float32, 2, 8)
    assert str(refused.value) == why


@pytest.mark.parametrize(
    ("dtype", "heads", "name"),
    [(torch.float32, 16, "fused"), (torch.bfloat16, 64, "products"), (torch.bfloat16, 0, "fused")],
)
def test_a_processor_has_its_own(dtype: torch.dtype, heads: int, name: str) -> None:
    attention, why = select_attention(CPU, dtype, heads, 64)
    assert attention.name == name
    assert why


def test_a_broken_cuda_runtime_is_told_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """diffusers' back ends are imported through it too, which must not fail over a library that only xformers wants."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / cuda_runtime.LIBRARY).write_bytes(b"not a library")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(cuda_runtime.importlib.util, "find_spec", lambda name: package)
    cuda_runtime.preload_cuda_runtime()
    assert "cannot be loaded" in caplog.text
