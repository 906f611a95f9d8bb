"""A token's bits do not depend on its batch, whatever the CPU's library does at other lengths."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from safelight.models.packed import linear
from safelight.models.packed.batch_invariance import (
    LENGTH_STEP,
    MAX_LENGTH,
    LengthRange,
    batch_invariant,
    cancelling_weight,
    find_invariant_lengths,
)
from safelight.models.packed.linear import LinearFunction, ProductFactory, make_linear

WIDTH = 96


def sum_in_halves(weight: Tensor, x: Tensor) -> Tensor:
    """Multiply as a library does that splits each sum between two threads."""
    middle = WIDTH // 2
    return x[:, :middle] @ weight[:, :middle].T + x[:, middle:] @ weight[:, middle:].T


def product_with_split_sums(is_split: Callable[[int], bool]) -> tuple[list[int], LinearFunction]:
    """A list of the lengths at which a product was called, and the product.

    It uses `sum_in_halves` at the lengths for which `is_split` is true, and one plain sum elsewhere.
    """
    weight = cancelling_weight(24, WIDTH, torch.float64).float()
    lengths: list[int] = []

    def product(x: Tensor) -> Tensor:
        lengths.append(len(x))
        halves, whole = sum_in_halves(weight, x), torch.zeros(len(x), len(weight))
        for k in range(WIDTH):
            whole += x[:, k : k + 1] * weight[:, k]
        return halves if is_split(len(x)) else whole

    return lengths, product


@pytest.mark.parametrize(
    ("is_split", "expected"),
    [
        (lambda length: False, LengthRange(64, 1024)),
        (lambda length: length < 192, LengthRange(192, 1024)),
        (lambda length: length > 640, LengthRange(64, 640)),
        (lambda length: length % 256 == 0, LengthRange(64, 192)),
        (lambda length: length < 300 or length > 700, LengthRange(320, 640)),
    ],
)
def test_only_lengths_with_equal_bits_are_used(
    is_split: Callable[[int], bool], expected: LengthRange
) -> None:
    called_lengths, product = product_with_split_sums(is_split)
    lengths = find_invariant_lengths(product, WIDTH, torch.float32)
    assert lengths == expected
    called_lengths.clear()
    safe = batch_invariant(product, lengths)
    x = torch.randn(2 * MAX_LENGTH + 77, WIDTH, generator=torch.Generator().manual_seed(5))
    together = safe(x)
    for start, count in ((0, 1), (17, 60), (100, 64), (3, 333), (900, 1200)):
        assert torch.equal(safe(x[start : start + count]), together[start : start + count])
    assert all(
        lengths.min_tokens <= length <= lengths.max_tokens and length % LENGTH_STEP == 0
        for length in called_lengths
    )


def position_dependent(weight: Tensor, bias: Tensor, has_gelu: bool) -> LinearFunction:
    """A product in which a token's bits depend on its position."""
    return lambda x: x @ weight.T + bias + torch.arange(len(x))[:, None]


def test_a_position_dependent_product_has_no_invariant_length() -> None:
    product = position_dependent(torch.eye(WIDTH), torch.zeros(WIDTH), False)
    assert find_invariant_lengths(product, WIDTH, torch.float32) is None


@pytest.fixture
def empty_cache() -> Iterator[None]:
    """An empty cache of products, before and after the test."""
    linear._select_product.cache_clear()
    yield
    linear._select_product.cache_clear()


@pytest.mark.parametrize(
    "implementations", [(position_dependent, linear._onednn_product), (position_dependent,)]
)
def test_another_implementation_replaces_a_position_dependent_one(
    monkeypatch: pytest.MonkeyPatch,
    empty_cache: None,
    caplog: pytest.LogCaptureFixture,
    implementations: tuple[ProductFactory, ...],
) -> None:
    monkeypatch.setattr(linear, "_implementations", lambda dtype: implementations)
    weight, bias = cancelling_weight(7, 33, torch.float32), torch.randn(7)
    layer = make_linear(weight, bias)
    x = torch.randn(100, 33, generator=torch.Generator().manual_seed(7))
    output = layer(x)
    assert torch.allclose(output, x @ weight.T + bias, atol=1e-4)
    assert torch.equal(layer(x[40:41]), output[40:41])
    assert ("runs token by token" in caplog.text) == (implementations == (position_dependent,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("d_in", "d_out"), [(256, 768), (1024, 256), (1152, 1152), (2048, 96), (33, 7)])
def test_linear_layers_are_batch_invariant_on_this_cpu(d_in: int, d_out: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = cancelling_weight(d_out, d_in, dtype)
    bias = torch.zeros(d_out, dtype=dtype)
    layer = make_linear(weight, bias)
    # Sums with this weight cancel to their rounding errors, so another order of a sum changes the bits.
    half = torch.randn(1500, d_in // 2, generator=generator)
    x = torch.cat([half, half, torch.zeros(1500, d_in % 2)], 1)[
        :, torch.randperm(d_in, generator=torch.Generator().manual_seed(2))
    ].to(dtype)
    together = layer(x)
    for start, count in ((0, 1), (5, 11), (64, 64), (60, 60), (200, 128), (1, 700), (476, 1024), (100, 1400)):
        assert torch.equal(layer(x[start : start + count]), together[start : start + count])
    exact = x.double() @ weight.double().T
    assert float((together.double() - exact).abs().max()) < 0.02 * d_in**0.5
