"""Linear layers for inference, each with a GELU after it where the network has one.

Shapes: T tokens, D_in and D_out channels.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.packed.batch_invariance import (
    LengthRange,
    batch_invariant,
    cancelling_weight,
    find_invariant_lengths,
)

LinearFunction = Callable[[Tensor], Tensor]
ProductFactory = Callable[[Tensor, Tensor, bool], LinearFunction]  # of weight, bias, has_gelu
Step = TypeVar("Step", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

# oneDNN lays a weight out for an expected number of tokens.
# It is a constant, so that bits do not depend on the batch.
TYPICAL_TOKENS = 1024


class LayerFactory(Protocol):
    """Makes the large layers of a packed network; the small ones always come from `make_linear`."""

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        """Return x (T, D_in) -> x weight^T + bias, (T, D_out)."""
        ...

    def feed_forward(self, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> LinearFunction:
        """Return two layers (weight, bias) with a GELU (tanh) between them, (T, D_in) to (T, D_out)."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether `step` compiles."""
        ...

    def step(self, function: Step) -> Step:
        """Return `function`, a step of a block between two attentions, in the form in which it runs."""
        ...


class Unquantized:
    """Makes layers in the network's own dtype."""

    is_compiled = False

    def step(self, function: Step) -> Step:
        return function

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        return make_linear(weight, bias)

    def feed_forward(self, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> LinearFunction:
        first, second = make_linear(*up, has_gelu=True), make_linear(*down)
        return lambda x: second(first(x))


UNQUANTIZED = Unquantized()


def make_linear(weight: Tensor, bias: Tensor, has_gelu: bool = False) -> LinearFunction:
    """Return x (T, D_in) -> x weight^T + bias, (T, D_out), through a GELU (tanh) if `has_gelu`.

    The fastest implementation that the weight's device has. On a CPU it is batch-invariant: a token's bits do
    not depend on the other tokens.
    """
    if weight.device.type != "cpu":
        return torch_product(weight, bias, has_gelu)
    d_out, d_in = weight.shape
    make_product, lengths = _select_product(d_out, d_in, weight.dtype, has_gelu, torch.get_num_threads())
    product = make_product(weight, bias, has_gelu)
    return product if lengths is None else batch_invariant(product, lengths)


@cache
def _select_product(
    d_out: int, d_in: int, dtype: torch.dtype, has_gelu: bool, num_threads: int
) -> tuple[ProductFactory, LengthRange | None]:
    """Find the first implementation that is batch-invariant at some length, and its lengths.

    This runs once for each shape, dtype and number of threads.
    Some libraries have kernels for narrow products in which a token's bits depend on its position, at any
    length.

    Args:
        d_out: channels of an output token.
        d_in: channels of an input token.
        dtype: of the weight.
        has_gelu: whether a GELU follows.
        num_threads: part of the cache's key only; the library reads torch's setting.

    Returns:
        The implementation and its lengths; `_product_by_token` and None if there is none.
    """
    weight, bias = cancelling_weight(d_out, d_in, dtype), torch.zeros(d_out, dtype=dtype)
    with torch.inference_mode():
        for make_product in _implementations(dtype):
            lengths = find_invariant_lengths(make_product(weight, bias, has_gelu), d_in, dtype)
            if lengths is not None:
                return make_product, lengths
    logger.warning(
        "no product of %s x %s in %s is batch-invariant here: it runs token by token", d_out, d_in, dtype
    )
    return _product_by_token, None


def _implementations(dtype: torch.dtype) -> tuple[ProductFactory, ...]:
    """The implementations on a CPU, the usually fastest one first."""
    if not _has_onednn(dtype):
        return (torch_product,)
    if dtype == torch.bfloat16:
        return (_onednn_product, torch_product)
    return (torch_product, _onednn_product)


def torch_product(weight: Tensor, bias: Tensor, has_gelu: bool) -> LinearFunction:
    """torch's own product, whose bits may depend on the number of tokens."""
    if has_gelu:
        return lambda x: F.gelu(F.linear(x, weight, bias), approximate="tanh")
    return lambda x: F.linear(x, weight, bias)


def _product_by_token(weight: Tensor, bias: Tensor, has_gelu: bool) -> LinearFunction:
    """Multiply each token alone: slow, and batch-invariant by construction."""
    product = torch_product(weight, bias, has_gelu)
    return lambda x: torch.cat([product(token) for token in torch.split(x, 1)])


def _onednn_product(weight: Tensor, bias: Tensor, has_gelu: bool) -> LinearFunction:
    """Multiply through oneDNN: the weight is laid out once, and the GELU is applied in registers.

    These are the operators that torch's compiler calls.
    They are not a public interface, so `_has_onednn` tries them first.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_TOKENS)
    activation, algorithm = ("gelu", "tanh") if has_gelu else ("none", "")
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], algorithm)


@cache
def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in `dtype` here, by a real call."""
    x = torch.ones(2, 2, dtype=dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(x, TYPICAL_TOKENS)
        output = torch.ops.mkldnn._linear_pointwise(x, packed, x[0], "gelu", [], "tanh")
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.allclose(output, torch.full_like(output, 3.0), atol=0.05))
