"""The dtypes that networks are tested in."""

import pytest
import torch

from safelight.pipeline.assembly.device import fast_dtype

# A processor without bfloat16 emulates it, many times slower, and the service does not use it there.
BFLOAT16 = pytest.param(
    torch.bfloat16,
    id="bfloat16",
    marks=[] if fast_dtype() is torch.bfloat16 else [pytest.mark.long],
)
DTYPES = [pytest.param(torch.float32, id="float32"), BFLOAT16]
