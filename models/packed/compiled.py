"""Blocks whose steps between attentions are compiled by torch, each once for any number of tokens and rows.

What a compiler gains is fewer passes over memory: norms, modulations, gates and GELUs are fused. Attention
stays as it is. A compiled product may take another kernel for another number of tokens, so bits may depend on
the batch, and the form is used only where it is asked for.

Shapes: T tokens, R rows, D channels.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor

from safelight.models.device_copies import indices
from safelight.models.packed.layout import Layout
from safelight.models.packed.linear import LinearFunction, Step, torch_product

BACKEND: str | Callable[..., Any] = "inductor"  # of torch.compile
MIN_ROWS = 2  # a batch of one row would be compiled anew


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The row of every token, (T,): elementwise steps by a look-up, which one kernel does for all lengths."""

    row: Tensor

    def apply_by_row(
        self, function: Callable[..., Tensor], tokens: Sequence[Tensor], row_values: Sequence[Tensor]
    ) -> Tensor:
        """As `Layout.apply_by_row`."""
        return function(*tokens, *(values[self.row] for values in row_values))


@dataclass(frozen=True, slots=True)
class CompiledLayers:
    """A `LayerFactory` of plain products, whose steps are compiled by `BACKEND`."""

    is_compiled = True

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        return torch_product(weight, bias, False)

    def feed_forward(self, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> LinearFunction:
        first, second = torch_product(*up, True), torch_product(*down, False)
        return lambda x: second(first(x))

    def step(self, function: Step) -> Step:
        compiled = torch.compile(function, backend=BACKEND, fullgraph=True)

        @wraps(function)
        def run(*args: Any) -> Any:
            for tensor in _tensors(args):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return compiled(*args)

        return cast(Step, run)


def token_rows(layout: Layout, device: torch.device) -> TokenRows:
    """The row of every token of `layout`, on `device`."""
    return TokenRows(indices([row for row, count in enumerate(layout.lengths) for _ in range(count)], device))


def with_min_rows(row_values: Tensor, dim: int) -> Tensor:
    """`row_values` with the rows of `dim` repeated if they are fewer than `MIN_ROWS`; no token reads them."""
    if row_values.shape[dim] >= MIN_ROWS:
        return row_values
    return torch.cat([row_values] * MIN_ROWS, dim)


def _tensors(args: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors among the arguments of a step, also those within sequences and `TokenRows`."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, TokenRows):
            yield arg.row
        elif isinstance(arg, tuple | list):
            yield from _tensors(arg)


def compile_blocks(network: Any) -> None:
    """Compile the blocks of a plain network in place, each kind once for any number of rows and tokens."""
    for block in network.transformer_blocks:
        block.compile(backend=BACKEND, dynamic=True, fullgraph=True)
