"""LinearFunction layers in 8-bit whole numbers: a scale for each output channel of a weight, one for each token, products summed in int32.

The products are exact, so they are the same in any order and in any company. What is around them torch's compiler makes: as passes
of their own they would cost more than the products save (docs/performance.md).

Shapes: T tokens, D_in and D_out channels. After "LLM.int8()" (arXiv:2208.07339), without its outliers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.packed.linear import LinearFunction

LARGEST = 127
MIDDLE = 128  # processors multiply unsigned by signed numbers: there a token's are stored with this added
NEVER_ZERO = 1e-8
TOLERANCE = 0.05  # of the probe; one rounding is a 254th
FEWEST_TOKENS = 64
MLP_TOKENS = 1024  # at a time, so that what lies between its products stays in the processor's cache


class QuantizationUnavailable(ValueError):
    """This device cannot do it; the message says why."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The steps between products, compiled for any number of tokens."""

    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    restore: Callable[..., Tensor]
    activate: Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight with its bias: `values` (D_in, D_out) int8 are weight^T over `scale` (D_out,)."""

    values: Tensor
    scale: Tensor
    surplus: Tensor  # (D_out,) int32: what `MIDDLE` adds to a sum
    bias: Tensor

    def sums(self, numbers: Tensor, largest: Tensor) -> tuple[Tensor, ...]:
        """Tokens as `quantize` made them to what `restore` and `activate` are given."""
        return torch._int_mm(numbers, self.values), largest, self.surplus, self.scale, self.bias


@dataclass(frozen=True, slots=True)
class Int8:
    """Layers in int8 on `device` for tokens in `dtype`; the maker that the packed networks are given."""

    kernels: Kernels

    @classmethod
    def on(cls, device: torch.device, dtype: torch.dtype) -> "Int8":
        """Raise `QuantizationUnavailable` unless a real call gives here what it should."""
        maker = cls(_kernels(device.type == "cpu", dtype))
        x = (
            torch.linspace(-2, 2, 67 * 48, device=device).view(67, 48).to(dtype)
        )  # no two lengths alike: the compiler would think them one
        weight, bias = x[:40, :].flip(0), x[:40, 0]
        back = x[:48, :40].flip(1)
        try:
            found = maker.feed_forward((weight, bias), (back.contiguous(), x[0]))(
                maker.linear(x[:48].flip(0).contiguous(), x[0])(x)
            )
        except Exception as error:
            why = " ".join(str(error).split())[:200]
            raise QuantizationUnavailable(
                f"quantization int8 does not work on {device.type} here: {type(error).__name__}: {why}"
            ) from None
        wanted = F.linear(
            F.gelu(F.linear(F.linear(x, x[:48].flip(0), x[0]), weight, bias), approximate="tanh"), back, x[0]
        )
        if not bool(
            (found - wanted).float().norm() < TOLERANCE * wanted.float().norm()
        ):  # which a NaN is not
            raise QuantizationUnavailable(f"quantization int8 gives wrong numbers on {device.type} here")
        return maker

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        """x (T, D_in) to about x weight^T + bias, (T, D_out)."""
        own, kernels = _quantized(weight, bias), self.kernels
        return _never_few(lambda x: kernels.restore(*own.sums(*kernels.quantize(x))))

    def feed_forward(self, rise: tuple[Tensor, Tensor], fall: tuple[Tensor, Tensor]) -> LinearFunction:
        """Weight and bias of two layers with a GELU (tanh) between them, x (T, D_in) to (T, D_out)."""
        up, down, kernels = _quantized(*rise), _quantized(*fall), self.kernels

        def move(x: Tensor) -> Tensor:
            return kernels.restore(*down.sums(*kernels.activate(*up.sums(*kernels.quantize(x)))))

        return _never_few(
            lambda x: (
                move(x)
                if len(x) <= MLP_TOKENS
                else torch.cat([_never_few(move)(part) for part in x.split(MLP_TOKENS)])
            )
        )


def _never_few(layer: LinearFunction) -> LinearFunction:
    """One token would be compiled anew, and CUDA's product wants seventeen."""
    return lambda x: (
        layer(x) if len(x) >= FEWEST_TOKENS else layer(F.pad(x, (0, 0, 0, FEWEST_TOKENS - len(x))))[: len(x)]
    )


def _quantized(weight: Tensor, bias: Tensor) -> Weight:
    scale = weight.float().abs().amax(1).clamp_min(NEVER_ZERO) / LARGEST
    values = (weight.float() / scale[:, None]).round().to(torch.int8)
    surplus = (
        MIDDLE * values.sum(1, dtype=torch.int32)
        if weight.device.type == "cpu"
        else torch.zeros_like(scale, dtype=torch.int32)
    )
    return Weight(values.t().contiguous(), scale / LARGEST, surplus, bias.float())


@lru_cache
def _kernels(is_shifted: bool, dtype: torch.dtype) -> Kernels:
    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, D) to whole numbers and the largest of each token (T, 1)."""
        x = x.float()
        largest = x.abs().amax(1, keepdim=True) + NEVER_ZERO
        numbers = x * (LARGEST / largest)
        return (
            (numbers + (MIDDLE + 0.5)).to(torch.uint8) if is_shifted else numbers.round().to(torch.int8)
        ), largest

    def product(sums: Tensor, largest: Tensor, surplus: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return (sums - surplus).float() * largest * scale + bias

    def restore(*sums: Tensor) -> Tensor:
        return product(*sums).to(dtype)

    def activate(*sums: Tensor) -> tuple[Tensor, Tensor]:
        x = product(
            *sums
        )  # the tanh of a GELU as a sigmoid: two thirds of the pass, and of the product's time, were its tanh
        return quantize(x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)))

    return Kernels(*(torch.compile(step, dynamic=True) for step in (quantize, restore, activate)))
