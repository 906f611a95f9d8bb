"""Rescaled guidance against torch's standard deviation."""

import pytest
import torch

from safelight.pipeline.diffusion.guidance import rescale


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3, 3, 5), (1, 1, 1, 7)], ids=str)
def test_fully_rescaled_guidance_has_the_deviation_of_the_prompted_output(shape: tuple[int, ...]) -> None:
    """Also of an odd number of elements, of which the sum by halves must lose none."""
    generator = torch.Generator().manual_seed(0)
    cond, guided = (scale * torch.randn(shape, generator=generator) for scale in (1.0, 3.0))
    rescaled = rescale(guided, cond, torch.ones(shape[0], 1, 1, 1))
    dims = (1, 2, 3)
    torch.testing.assert_close(rescaled.std(dims, correction=0), cond.std(dims, correction=0))
