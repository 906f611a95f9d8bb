"""Matrices stored in int8 with a scale for each row: half of the bytes of bfloat16.

A file holds the matrix `NAME` (O, I) as int8, and `NAME.row_scale` (O,), float32; their product is the
matrix. Vectors and small matrices, which are few bytes, stay as they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

ROW_SCALE = ".row_scale"
MIN_ELEMENTS = 4096  # of a matrix that is stored in int8
MAX_INT8 = 127


def quantise_matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with every large matrix of floating point in int8, and its row scales beside it."""
    quantised: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.is_floating_point() and tensor.numel() >= MIN_ELEMENTS:
            quantised[name], quantised[name + ROW_SCALE] = quantise_rows(tensor)
        else:
            quantised[name] = tensor
    return quantised


def quantise_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 matrix (O, I) and the row scales (O,), float32, nearest to `matrix` (O, I)."""
    scale = matrix.float().abs().amax(dim=1) / MAX_INT8
    divisor = torch.where(scale > 0, scale, 1.0)
    return (matrix.float() / divisor[:, None]).round().to(torch.int8), scale


def restore_rows(matrix: Tensor, scale: Tensor) -> Tensor:
    """The matrix (O, I), float32, of an int8 matrix (O, I) and its row scales (O,)."""
    return matrix.float() * scale.float()[:, None]
