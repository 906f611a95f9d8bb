"""A token's bits do not depend on its company, whatever the processor's library does with products of other lengths."""

import pytest
import torch
from torch import Tensor

from safelight.models.packed.batch_invariance import (
    MOST,
    STEP,
    Lengths,
    agreeing_lengths,
    cancelling,
    invariant,
)
from safelight.models.packed.linear import make_linear

WIDTH = 96


def halves_apart(weight: Tensor, x: Tensor) -> Tensor:
    """As a library that shares the sum out to two threads."""
    middle = WIDTH // 2
    return x[:, :middle] @ weight[:, :middle].T + x[:, middle:] @ weight[:, middle:].T


def shared_out(is_shared) -> tuple[list[int], object]:
    """A product that is `halves_apart` at the lengths for which `is_shared`, and the lengths at which it was called."""
    weight, called = cancelling(24, WIDTH, torch.float64).float(), []

    def product(x: Tensor) -> Tensor:
        called.append(len(x))
        apart, whole = halves_apart(weight, x), sum(x[:, k : k + 1] * weight[:, k] for k in range(WIDTH))
        return apart if is_shared(len(x)) else whole

    return called, product


@pytest.mark.parametrize(
    ("is_shared", "wanted"),
    [
        (lambda length: False, Lengths(64, 1024)),
        (lambda length: length < 192, Lengths(192, 1024)),
        (lambda length: length > 640, Lengths(64, 640)),
        (lambda length: length % 256 == 0, Lengths(64, 192)),
        (lambda length: length < 300 or length > 700, Lengths(320, 640)),
    ],
)
def test_only_lengths_that_agree_are_taken(is_shared, wanted: Lengths) -> None:
    called, product = shared_out(is_shared)
    found = agreeing_lengths(product, WIDTH, torch.float32)
    assert found == wanted
    called.clear()
    safe = invariant(product, found)
    x = torch.randn(2 * MOST + 77, WIDTH, generator=torch.Generator().manual_seed(5))
    together = safe(x)
    for start, count in ((0, 1), (17, 60), (100, 64), (3, 333), (900, 1200)):
        assert torch.equal(safe(x[start : start + count]), together[start : start + count])
    assert all(found.least <= length <= found.most and length % STEP == 0 for length in called)


def test_a_product_that_minds_the_place_is_served_as_it_is_found_at_its_shortest() -> None:
    def product(x: Tensor) -> Tensor:
        return x + torch.arange(len(x))[:, None]

    assert agreeing_lengths(product, WIDTH, torch.float32) == Lengths(STEP, STEP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("d_in", "d_out"), [(256, 768), (1024, 256), (1152, 1152), (2048, 96), (33, 7)])
def test_here_too(d_in: int, d_out: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = cancelling(d_out, d_in, dtype)
    bias = torch.zeros(d_out, dtype=dtype)
    linear = make_linear(weight, bias)
    # with weights that leave nothing of a sum but its rounding
    half = torch.randn(1500, d_in // 2, generator=generator)
    x = torch.cat([half, half, torch.zeros(1500, d_in % 2)], 1)[
        :, torch.randperm(d_in, generator=torch.Generator().manual_seed(2))
    ].to(dtype)
    together = linear(x)
    for start, count in ((0, 1), (5, 11), (64, 64), (60, 60), (200, 128), (1, 700), (476, 1024), (100, 1400)):
        assert torch.equal(linear(x[start : start + count]), together[start : start + count])
    exact = x.double() @ weight.double().T
    assert float((together.double() - exact).abs().max()) < 0.02 * d_in**0.5
