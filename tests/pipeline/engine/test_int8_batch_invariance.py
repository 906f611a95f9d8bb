"""Images by an int8 denoiser do not depend on their batch-mates, and differ from the exact denoiser's."""

from functools import cached_property
from pathlib import Path

import pytest
import torch

from safelight.pipeline.assembly.engine import build_engine, build_runner
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine.runner import StepRunner
from tests.dtypes import DTYPES
from tests.models.folders import write_sd3
from tests.pipeline import parts as tiny
from tests.pipeline.engine.test_batch_invariance import Parts, check, num_schedules

__all__ = ["num_schedules"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler and diffusers warn about themselves


class Quantized(Parts):
    """Stages with an int8 denoiser."""

    @cached_property
    def runner(self) -> StepRunner:
        return build_runner(self.model, dtype=self.dtype, quantization="int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_schedules_of_batch_mates_change_no_byte(dtype: torch.dtype, num_schedules: int) -> None:
    parts = Quantized(find_model("tiny"), dtype)
    assert parts.runner.is_batch_invariant
    check(parts, num_schedules // 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_denoiser_is_not_the_exact_one(dtype: torch.dtype) -> None:
    engine = build_engine(tiny.model(), dtype=dtype, quantization="int8")
    tiny.add(engine, "only", tiny.params())
    latents, exact = tiny.drain(engine)["only"].latents, tiny.alone(tiny.params(), dtype)
    assert latents is not None
    assert 1e-4 < float((latents - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_schedules_of_batch_mates_change_no_byte_in_an_mmdit(
    tmp_path: Path, num_schedules: int, dtype: torch.dtype
) -> None:
    write_sd3(tmp_path / "sd3", "sd3.5-medium")
    check(Quantized(find_model(str(tmp_path / "sd3")), dtype), num_schedules // 8)
