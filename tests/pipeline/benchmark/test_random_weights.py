"""The benchmark of published shapes with random weights, on tiny ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.models.families.published_shapes import find_shape, list_shapes
from safelight.pipeline.assembly import device as device_module
from safelight.pipeline.assembly.random_weights import needed_bytes, random_decoder, random_runner
from safelight.pipeline.benchmark import random_weights
from safelight.pipeline.benchmark.random_weights import (
    DoesNotFit,
    RandomWeightsOptions,
    expect,
    make_subject,
    measure_random_weights,
    measure_run,
)
from safelight.pipeline.capacity.image_cost import image_cost
from safelight.pipeline.capacity.model_profiles import published_profile
from safelight.pipeline.errors import InvalidParams

CPU = torch.device("cpu")


def nothing(text: str) -> None:
    pass


def quick_peak(device: torch.device, dtype: torch.dtype) -> float:
    return 1e12


@pytest.mark.parametrize("name", list_shapes())
def test_every_family_is_drawn_with_its_own_decoder(name: str) -> None:
    """Two images at once, and the operations are those that the capacity model counts."""
    subject = make_subject(RandomWeightsOptions(f"tiny-{name}", num_steps=3))
    runner = random_runner(subject.family, subject.published, CPU, torch.float32)
    decoder = random_decoder(subject.published, CPU, torch.float32)
    run = measure_run(subject, "eager", 2, runner, decoder, 1e12, nothing)
    flops = run.mfu * run.denoise_s * 1e12
    # both share their texts, which the warm-up has prepared, and their plan
    ticks = 2 * sum(subject.cost.ticks)
    assert ticks <= flops * (1 + 1e-9) and flops <= (ticks + subject.cost.once) * (1 + 1e-9)
    assert run.latency_s == pytest.approx(run.denoise_s + run.decode_s)
    assert run.images_per_hour == pytest.approx(2 * 3600 / run.latency_s)


@pytest.mark.parametrize("name", list_shapes())
def test_the_true_shape_is_that_of_the_plan(name: str) -> None:
    """The network has the parameters of the published one, and an image the plan's operations."""
    family, published = find_shape(name)
    subject = make_subject(RandomWeightsOptions(name))
    profile = published_profile(name)
    assert subject.spec.size == profile.native_size
    assert subject.cost == replace(image_cost(profile, subject.spec), encode=0)
    num_parameters = needed_bytes(family, published, torch.bfloat16) / 2 / 1.5
    billions = {
        "pixart-alpha": 0.61, "pixart-sigma": 0.61, "sd3-medium": 2.1, "sd3.5-medium": 2.5,
        "sd3.5-large": 8.1, "dit": 0.8,
    }  # fmt: skip
    assert num_parameters / 1e9 == pytest.approx(billions[name], rel=0.15)


def test_a_transformers_name_is_as_good() -> None:
    assert find_shape("dit-xl-2") == find_shape("dit")
    assert find_shape("tiny") == find_shape("tiny-pixart-sigma")


def test_a_known_gpu_is_predicted_by_its_data_sheet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = make_subject(RandomWeightsOptions("pixart-sigma"))
    here = expect(subject.profile, subject.spec, CPU, 1e12)
    assert here.latency_s == pytest.approx(subject.cost.total / 0.5e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    there = expect(subject.profile, subject.spec, torch.device("cuda"), 1e12)
    assert (there.by, there.peak_flops, there.mfu) == ("NVIDIA H100 SXM", 989e12, 0.3)
    assert there.images_per_hour == pytest.approx(3600 * 0.3 * 989e12 / subject.cost.total)


def test_all_runs_are_measured_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "gemm_peak", quick_peak)
    lines: list[str] = []
    options = RandomWeightsOptions("tiny-dit", num_steps=2, in_flight=(1, 3), with_compiled=False)
    result = measure_random_weights(options, lines.append)
    assert [(run.mode, run.in_flight) for run in result.runs] == [("eager", 1), ("eager", 3)]
    assert lines[-1] == "eager, 3 in flight: decoding"
    assert all(run.peak_memory_bytes > 10**7 for run in result.runs)
    json.dumps(result.figures())


def test_a_size_that_is_not_whole_tokens_is_refused() -> None:
    with pytest.raises(InvalidParams, match="size 1000x1000 is not possible"):
        measure_random_weights(RandomWeightsOptions("pixart-sigma", size=(1000, 1000)), nothing)


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9999999 kB\nMemAvailable:    4000000 kB\n")
    monkeypatch.setattr(device_module, "MEMINFO", meminfo)
    monkeypatch.setattr(random_weights, "fast_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(random_weights, "gemm_peak", lambda *_: pytest.fail("it went on"))
    with pytest.raises(DoesNotFit) as refused:
        measure_random_weights(RandomWeightsOptions("sd3.5-large"), nothing)
    sentence = r"sd3.5-large takes about 2\d\.\d GB to build in bfloat16, and cpu has 4.1 GB free"
    assert refused.match(sentence)


def test_an_allocation_that_fails_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(random_weights, "gemm_peak", quick_peak)
    monkeypatch.setattr(random_weights, "measure_run", fail)
    with pytest.raises(DoesNotFit, match="tiny-dit does not fit into the memory of cpu"):
        measure_random_weights(RandomWeightsOptions("tiny-dit", with_compiled=False), nothing)
