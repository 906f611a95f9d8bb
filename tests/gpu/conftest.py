"""The devices that the tests of this folder run on."""

import pytest
import torch

from safelight.pipeline.assembly.device import fast_dtype

NO_CUDA = "no CUDA device; `make gpu` runs it where there is one"
CUDA = pytest.param("cuda", marks=[] if torch.cuda.is_available() else [pytest.mark.skip(reason=NO_CUDA)])


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=[CUDA])
def cuda(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def dtype(device: torch.device) -> torch.dtype:
    """The dtype that serves on `device`."""
    return fast_dtype() if device.type == "cuda" else torch.float32
