"""Linear layers in int8: one scale for each output channel and one for each token, sums in int32.

The products are exact, so their bits do not depend on the order of a sum or on the batch. torch's compiler
fuses the steps around them: as separate passes they would cost more than the products save
(docs/performance.md).

Shapes: T tokens, D_in and D_out channels. After "LLM.int8()" (arXiv:2208.07339), without its outliers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.packed.linear import LinearFunction, Step

MAX_INT8 = 127
# CPUs multiply unsigned by signed numbers, so there a token's values are stored with this added.
UINT8_OFFSET = 128
MIN_SCALE = 1e-8
TOLERANCE = 0.05  # relative error of the probe; one rounding is 1/254
MIN_TOKENS = 64
MLP_CHUNK = 1024  # tokens at a time, so that an MLP's hidden values stay in the CPU's cache


class QuantizationUnavailable(ValueError):
    """int8 does not work on this device or network; the message says why."""


@dataclass(frozen=True, slots=True)
class Int8Kernels:
    """The steps around the products, compiled for any number of tokens."""

    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]  # to integers and each token's largest magnitude
    restore: Callable[..., Tensor]  # sums to outputs
    activate: Callable[..., tuple[Tensor, Tensor]]  # sums, through a GELU, to the next layer's integers


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight and its bias: weight^T is about 127 `scale` (D_out,) times `values` (D_in, D_out) int8."""

    values: Tensor
    scale: Tensor
    surplus: Tensor  # (D_out,) int32: what `UINT8_OFFSET` adds to each sum
    bias: Tensor

    def sums(self, tokens: Tensor, largest: Tensor) -> tuple[Tensor, ...]:
        """Multiply the result of `quantize` by the weight; return the arguments of `restore`/`activate`."""
        return torch._int_mm(tokens, self.values), largest, self.surplus, self.scale, self.bias


@dataclass(frozen=True, slots=True)
class Int8:
    """A `LayerFactory` that makes int8 layers."""

    kernels: Int8Kernels
    is_compiled = False  # as a whole; its own kernels are

    def step(self, function: Step) -> Step:
        return function

    @classmethod
    def on(cls, device: torch.device, dtype: torch.dtype) -> "Int8":
        """Make the factory for tokens of `dtype` on `device`.

        Raises:
            QuantizationUnavailable: a real call on the device fails or gives wrong numbers.
        """
        factory = cls(_kernels(device.type == "cpu", dtype))
        # No two dimensions are equal: the compiler would assume that they always are.
        x = torch.linspace(-2, 2, 67 * 48, device=device).view(67, 48).to(dtype)
        linear = x[:48].flip(0).contiguous(), x[0]
        up, down = (x[:40, :].flip(0), x[:40, 0]), (x[:48, :40].flip(1).contiguous(), x[0])
        try:
            output = factory.feed_forward(up, down)(factory.linear(*linear)(x))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise QuantizationUnavailable(
                f"quantization int8 does not work on {device.type} here: {type(error).__name__}: {reason}"
            ) from None
        hidden = F.gelu(F.linear(F.linear(x, *linear), *up), approximate="tanh")
        expected = F.linear(hidden, *down)
        error_norm = (output - expected).float().norm()
        if not bool(error_norm < TOLERANCE * expected.float().norm()):  # true for a NaN as well
            raise QuantizationUnavailable(f"quantization int8 gives wrong numbers on {device.type} here")
        return factory

    def linear(self, weight: Tensor, bias: Tensor) -> LinearFunction:
        """Return x (T, D_in) -> about x weight^T + bias, (T, D_out)."""
        quantized, kernels = _quantize_weight(weight, bias), self.kernels
        return _with_min_tokens(lambda x: kernels.restore(*quantized.sums(*kernels.quantize(x))))

    def feed_forward(self, up: tuple[Tensor, Tensor], down: tuple[Tensor, Tensor]) -> LinearFunction:
        """Return two layers (weight, bias) with a GELU (tanh) between them, (T, D_in) to (T, D_out)."""
        first, second, kernels = _quantize_weight(*up), _quantize_weight(*down), self.kernels

        def mlp(x: Tensor) -> Tensor:
            return kernels.restore(*second.sums(*kernels.activate(*first.sums(*kernels.quantize(x)))))

        return _with_min_tokens(
            lambda x: (
                mlp(x)
                if len(x) <= MLP_CHUNK
                else torch.cat([_with_min_tokens(mlp)(chunk) for chunk in torch.split(x, MLP_CHUNK)])
            )
        )


def _with_min_tokens(layer: LinearFunction) -> LinearFunction:
    """Pad inputs to `MIN_TOKENS`: one token would be compiled anew, and CUDA's product needs at least 17."""
    return lambda x: (
        layer(x) if len(x) >= MIN_TOKENS else layer(F.pad(x, (0, 0, 0, MIN_TOKENS - len(x))))[: len(x)]
    )


def _quantize_weight(weight: Tensor, bias: Tensor) -> QuantizedWeight:
    scale = weight.float().abs().amax(1).clamp_min(MIN_SCALE) / MAX_INT8
    values = (weight.float() / scale[:, None]).round().to(torch.int8)
    surplus = (
        UINT8_OFFSET * values.sum(1, dtype=torch.int32)
        if weight.device.type == "cpu"
        else torch.zeros_like(scale, dtype=torch.int32)
    )
    # cuBLAS takes the second factor of an int8 product column by column.
    transposed = values.t().contiguous() if weight.device.type == "cpu" else values.t()
    return QuantizedWeight(transposed, scale / MAX_INT8, surplus, bias.float())


@lru_cache
def _kernels(is_unsigned: bool, dtype: torch.dtype) -> Int8Kernels:
    """Compile the steps around the products, with tokens as uint8 or int8 and outputs in `dtype`."""

    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize x (T, D); return the integers and the largest magnitude of each token (T, 1)."""
        x = x.float()
        largest = x.abs().amax(1, keepdim=True) + MIN_SCALE
        scaled = x * (MAX_INT8 / largest)
        # The 0.5 makes the truncation of the cast round to nearest.
        integers = (
            (scaled + (UINT8_OFFSET + 0.5)).to(torch.uint8) if is_unsigned else scaled.round().to(torch.int8)
        )
        return integers, largest

    def dequantize(sums: Tensor, largest: Tensor, surplus: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Turn the sums of a product into the layer's output (T, D_out), float32.

        Args:
            sums: (T, D_out), int32.
            largest: the largest magnitude of each token (T, 1), float32.
            surplus: (D_out,), int32: what `UINT8_OFFSET` adds to each sum.
            scale: of each output channel (D_out,), float32.
            bias: (D_out,), float32.
        """
        return (sums - surplus).float() * largest * scale + bias

    def restore(*sums: Tensor) -> Tensor:
        return dequantize(*sums).to(dtype)

    def activate(*sums: Tensor) -> tuple[Tensor, Tensor]:
        x = dequantize(*sums)
        # The GELU (tanh) through a sigmoid: tanh took two thirds of this pass, and of the product's time.
        return quantize(x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)))

    return Int8Kernels(
        torch.compile(quantize, dynamic=True),
        torch.compile(restore, dynamic=True),
        torch.compile(activate, dynamic=True),
    )
