"""xformers' back end as far as it can be tested without CUDA: masks, arguments of the call, and refusals."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safelight.models import cuda_runtime
from safelight.models.packed import attention as packed_attention
from safelight.models.packed import xformers_attention
from safelight.models.packed.attention import BACKENDS, PackedAttention
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.layout import Layout
from safelight.models.packed.xformers_attention import (
    XformersAttention,
    XformersUnavailable,
    import_ops,
    load_xformers,
)


class FakeCudaDevice(str):
    """A device that calls itself CUDA and computes on the CPU."""

    type = "cuda"


FAKE_CUDA: Any = FakeCudaDevice("cpu")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# queries and keys of each row
ROWS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), min_size=1, max_size=6)


def attend_with_dense_mask(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any) -> Tensor:
    """The documented meaning of xformers' call, (1, T, A, K): scores of all tokens plus the dense mask."""
    bias = attn_bias.materialize((1, q.shape[2], q.shape[1], k.shape[1]), dtype=torch.float32)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def attend(backend: PackedAttention, q: Tensor, k: Tensor, v: Tensor, metadata: Any) -> Tensor:
    k, v = (backend.select_keys(x, 0, metadata) for x in (k, v))
    return backend(q, k, v, metadata)


@pytest.fixture(scope="module")
def ops() -> Any:
    pytest.importorskip("xformers")
    return SimpleNamespace(fmha=import_ops().fmha, memory_efficient_attention=attend_with_dense_mask)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, data=st.data())
def test_its_mask_restricts_each_row_to_its_own_keys(
    ops: Any, rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    queries, keys = (Layout(lengths) for lengths in zip(*rows, strict=True))
    # each row's mask is some attended keys, then masked ones
    attended = [data.draw(st.integers(1, length)) for length in keys.lengths]
    mask = torch.cat(
        [torch.arange(length) < count for length, count in zip(keys.lengths, attended, strict=True)]
    )
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(layout.num_tokens, 2, 8, generator=generator) for layout in (queries, keys, keys))
    for key_mask in (mask, None):
        output, expected = (
            attend(backend, q, k, v, backend.prepare(queries, keys, key_mask, q.dtype, CPU))
            for backend in (XformersAttention(ops), BACKENDS["plain"])
        )
        assert torch.allclose(output, expected, atol=1e-5)


def test_it_is_refused_on_a_cpu() -> None:
    with pytest.raises(XformersUnavailable, match="CUDA only"):
        load_xformers(CPU, torch.bfloat16, 4, 64)


def test_torch_is_selected_with_the_reason_where_xformers_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    attention, reason = select_attention(CUDA, torch.bfloat16, 16, 72)
    assert (attention.name, reason) == (
        "fused",
        "xformers is not installed: in the checkout, pip install -e '.[cuda]'",
    )


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (
            lambda q, k, v, attn_bias: torch.zeros_like(q),
            "xformers differs from plain attention by 1 of its largest value",
        ),
        (
            lambda q, k, v, attn_bias: q.no_such_thing,
            "a call of xformers failed: 'Tensor' object has no attribute 'no_such_thing'",
        ),
        (
            lambda q, k, v, attn_bias: torch.full_like(q, torch.nan),
            "xformers differs from plain attention by nan of its largest value",
        ),
    ],
    ids=["wrong", "failing", "nan"],
)
def test_a_failing_or_wrong_call_is_refused(
    ops: Any, monkeypatch: pytest.MonkeyPatch, call: Any, reason: str
) -> None:
    masks = ops.fmha.attn_bias.BlockDiagonalMask
    on_cpu = SimpleNamespace(from_seqlens=lambda queries, keys, device: masks.from_seqlens(queries, keys))
    fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=on_cpu))
    broken = SimpleNamespace(fmha=fmha, memory_efficient_attention=call)
    monkeypatch.setattr(xformers_attention, "import_ops", lambda: broken)
    for module in (packed_attention, xformers_attention):  # memory is pinned only where there is a GPU
        monkeypatch.setattr(module, "to_device", lambda tensor, device: tensor)
    with pytest.raises(XformersUnavailable) as raised:
        load_xformers(FAKE_CUDA, torch.float32, 2, 8)
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("dtype", "heads", "name"),
    [(torch.float32, 16, "fused"), (torch.bfloat16, 64, "products"), (torch.bfloat16, 0, "fused")],
)
def test_the_back_end_on_a_cpu_depends_on_dtype_and_heads(dtype: torch.dtype, heads: int, name: str) -> None:
    attention, reason = select_attention(CPU, dtype, heads, 64)
    assert attention.name == name
    assert reason


def test_a_broken_cuda_runtime_is_logged_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Imports of diffusers preload it too, and must not fail over a library that only xformers needs."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / cuda_runtime.LIBRARY).write_bytes(b"not a library")
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    cuda_runtime.preload_cuda_runtime()
    assert "cannot be loaded" in caplog.text
