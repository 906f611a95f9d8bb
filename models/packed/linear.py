"""LinearFunction layers for inference, with a GELU after them where one follows.

Shapes: T tokens, D_in and D_out channels.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.packed.batch_invariance import Lengths, agreeing_lengths, cancelling, invariant

LinearFunction = Callable[[Tensor], Tensor]

TYPICAL_TOKENS = (
    1024  # oneDNN asks how many rows it shall lay the weight out for; the answer must not depend on the batch
)


class Layers(Protocol):
    """How the large layers of a packed network are computed; the small ones are always `make_linear`'s."""

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        """x (T, D_in) to x weight^T + bias, (T, D_out)."""
        ...

    def feed_forward(self, rise: tuple[Tensor, Tensor], fall: tuple[Tensor, Tensor]) -> LinearFunction:
        """Weight and bias of two layers with a GELU (tanh) between them, x (T, D_in) to (T, D_out)."""
        ...


class Unquantized:
    """In the network's own dtype."""

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        return make_linear(weight, bias)

    def feed_forward(self, rise: tuple[Tensor, Tensor], fall: tuple[Tensor, Tensor]) -> LinearFunction:
        first, second = make_linear(*rise, has_gelu=True), make_linear(*fall)
        return lambda x: second(first(x))


UNQUANTIZED = Unquantized()


def make_linear(weight: Tensor, bias: Tensor, has_gelu: bool = False) -> LinearFunction:
    """x (T, D_in) to x weight^T + bias, (T, D_out), through GELU (tanh) if `has_gelu`: the fastest way that this device has.

    On a processor the bits of a token are the same in any company.
    """
    product = _product(weight, bias, has_gelu)
    if weight.device.type != "cpu":
        return product
    return invariant(product, _lengths(*weight.shape, weight.dtype, has_gelu, torch.get_num_threads()))


def _product(weight: Tensor, bias: Tensor, has_gelu: bool) -> LinearFunction:
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _has_onednn():
        return _prepacked(weight, bias, has_gelu)
    if has_gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return lambda x: F.linear(x, weight, bias)


@cache
def _lengths(d_out: int, d_in: int, dtype: torch.dtype, has_gelu: bool, num_threads: int) -> Lengths:
    """Tried once for each shape: with as many threads as there are now."""
    with torch.inference_mode():
        product = _product(cancelling(d_out, d_in, dtype), torch.zeros(d_out, dtype=dtype), has_gelu)
        return agreeing_lengths(product, d_in, dtype)


def _prepacked(weight: Tensor, bias: Tensor, has_gelu: bool) -> LinearFunction:
    """Through oneDNN, with the weight laid out once, and the GELU taken while the product is still in registers.

    The operators are those that torch's compiler calls; they are no public interface, so `_has_onednn` tries them first.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
    after, algorithm = ("gelu", "tanh") if has_gelu else ("none", "")
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], algorithm)


def _has_onednn() -> bool:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    try:
        done = torch.ops.mkldnn._linear_pointwise(
            x, torch.ops.mkldnn._reorder_linear_weight(x, TYPICAL_TOKENS), x[0], "gelu", [], "tanh"
        )
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(done, torch.full_like(done, 3.0), atol=0.05))
