"""Linear layers for inference, with a GELU after them where one follows.

Shapes: T tokens, D_in and D_out channels.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

FEWEST_TOKENS = 64
TYPICAL_TOKENS = 1024  # oneDNN asks how many rows it shall lay the weight out for; the answer must not depend on the batch


class Layers(Protocol):
    """How the large layers of a packed network are computed; the small ones are always `make_linear`'s."""

    def linear(self, weight: Tensor, bias: Tensor) -> Linear:
        """x (T, D_in) to x weight^T + bias, (T, D_out)."""
        ...

    def feed_forward(self, rise: tuple[Tensor, Tensor], fall: tuple[Tensor, Tensor]) -> Linear:
        """Weight and bias of two layers with a GELU (tanh) between them, x (T, D_in) to (T, D_out)."""
        ...


class Unquantized:
    """In the network's own dtype."""

    def linear(self, weight: Tensor, bias: Tensor) -> Linear:
        return make_linear(weight, bias)

    def feed_forward(self, rise: tuple[Tensor, Tensor], fall: tuple[Tensor, Tensor]) -> Linear:
        first, second = make_linear(*rise, has_gelu=True), make_linear(*fall)
        return lambda x: second(first(x))


UNQUANTIZED = Unquantized()


def make_linear(weight: Tensor, bias: Tensor, has_gelu: bool = False) -> Linear:
    """x (T, D_in) to x weight^T + bias, (T, D_out), through GELU (tanh) if `has_gelu`: the fastest way that this device has."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _has_onednn():
        return _prepacked(weight, bias, has_gelu)
    if has_gelu:
        return lambda x: F.gelu(_linear(x, weight, bias), approximate="tanh")
    return lambda x: _linear(x, weight, bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The bits of a row are the same in any company: under a dozen rows MKL takes another way to a product, so few are filled up."""
    return (
        F.linear(x, weight, bias)
        if len(x) >= FEWEST_TOKENS
        else F.linear(F.pad(x, (0, 0, 0, FEWEST_TOKENS - len(x))), weight, bias)[: len(x)]
    )


def _prepacked(weight: Tensor, bias: Tensor, has_gelu: bool) -> Linear:
    """Through oneDNN, with the weight laid out once, and the GELU taken while the product is still in registers.

    The operators are those that torch's compiler calls; they are no public interface, so `_has_onednn` tries them first.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
    after, algorithm = ("gelu", "tanh") if has_gelu else ("none", "")
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], algorithm)


def _has_onednn() -> bool:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    try:
        done = torch.ops.mkldnn._linear_pointwise(x, torch.ops.mkldnn._reorder_linear_weight(x, TYPICAL_TOKENS), x[0], "gelu", [], "tanh")
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(done, torch.full_like(done, 3.0), atol=0.05))
