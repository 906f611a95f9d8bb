"""A comparison of tensors relative to their scale."""

import torch
from torch import Tensor


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Assert that the tensors differ by at most `tolerance`, relative to the scale of the expected one."""
    torch.testing.assert_close(actual, expected, atol=tolerance * expected.std().item(), rtol=0)
