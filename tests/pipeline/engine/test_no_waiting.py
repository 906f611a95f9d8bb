"""The engine on CUDA without a GPU: every tensor is where it belongs, and the host waits for no copy."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from safelight.models.families.published_shapes import find_shape
from safelight.pipeline.assembly.random_weights import random_runner, random_text
from safelight.pipeline.capacity.model_profiles import checkpoint_profile
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.engine.device_clock import HostClock
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.source_latents import SourceLatents
from safelight.pipeline.params import EditParams, FinishReason, GenerationParams, PreviewRequest
from safelight.pipeline.scheduling.batcher import Limits
from tests.fake_cuda import FakeCuda

FAMILIES = ("pixart-alpha", "pixart-sigma", "sd3-medium", "sd3.5-medium", "sd3.5-large", "dit")
IMAGE = GenerationParams("", "", 64, 64, 3, 4.0, "dpmpp_2m", seed=0)
# Everything that takes a path of its own through a tick.
IMAGES: Sequence[GenerationParams] = (
    IMAGE,
    replace(IMAGE, width=96, num_steps=2, guidance_scale=1.0),
    replace(IMAGE, solver="ddim", eta=1.0, guidance_rescale=0.7),
    replace(IMAGE, num_steps=4, guidance_stride=2),
    replace(IMAGE, num_steps=4, guidance_interval=(0.3, 0.8)),
    replace(IMAGE, edit=EditParams(strength=0.6, is_inpainting=True)),
)


def make_engine(name: str, device: torch.device, dtype: torch.dtype) -> Engine:
    """An engine for the tiny form of a published checkpoint, which goes through the motions of a GPU."""
    family, published = find_shape(f"tiny-{name}")
    profile = checkpoint_profile(family, published)
    runner = random_runner(family, published, device, dtype)
    runner.clock = HostClock(runs_ahead=True)

    def plan(params: GenerationParams) -> Plan:
        schedule, prediction = profile.schedule, profile.prediction
        return make_plan(params.solver, schedule, prediction, params.num_steps, eta=params.eta)

    return Engine(runner, plan, profile.scale, Limits(32, 10**6))


def add_all(engine: Engine, name: str) -> None:
    """Add one sample of each kind; every other text is shorter and has a masked token."""
    family, published = find_shape(f"tiny-{name}")
    texts = [random_text(family, published, seed) for seed in (1, 2)]
    if len(texts[0].mask) > 16:
        mask = torch.arange(len(texts[0].mask)) < 20
        texts[0] = replace(texts[0], mask=mask)
    for number, image in enumerate(IMAGES):
        image = replace(image, seed=number)
        if "sd3" in name and image.solver == "ddim":
            image = replace(image, solver="euler_ancestral", eta=0.0)
        shape = (engine.config.in_channels, image.height // 8, image.width // 8)
        source = SourceLatents(torch.ones(shape), torch.ones(shape[1:], dtype=torch.bool))
        engine.add(
            str(number),
            image,
            texts[number % 2],
            texts[1 - number % 2],
            source=source if image.edit else None,
            previews=PreviewRequest(1),
        )


def drain(engine: Engine) -> dict[str, FinishReason]:
    reasons: dict[str, FinishReason] = {}
    while engine.has_work:
        reasons |= {outcome.request_id: outcome.reason for outcome in engine.step()}
    return reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_no_tick_waits_for_the_device(name: str) -> None:
    with FakeCuda() as cuda:
        engine = make_engine(name, torch.device("cuda"), torch.bfloat16)
        built = len(cuda.waits)  # weights may be waited for
        add_all(engine, name)
        reasons = drain(engine)
        waits = cuda.waits[built:]
    assert waits == []
    assert list(reasons.values()) == [FinishReason.DONE] * len(IMAGES)
    # each image's latents, and the previews of those that have a second tick
    assert cuda.downloads >= 2 * len(IMAGES) - 1 and cuda.uploads > len(IMAGES)


def waits_of(compute: Any) -> list[str]:
    with FakeCuda() as cuda:
        compute()
    return cuda.waits


@pytest.mark.parametrize(
    ("compute", "complaint"),
    [
        (lambda: torch.ones(3).to("cuda", non_blocking=True), "a copy of (3,) from pageable memory"),
        (lambda: torch.ones(3).pin_memory().to("cuda"), "a copy of (3,) from pageable memory"),
        (lambda: torch.tensor([1.0], device="cuda"), "a copy of (1,) from pageable memory"),
        (lambda: torch.ones(3, device="cuda").cpu(), "a copy to the host"),
        (lambda: torch.zeros(3).copy_(torch.ones(3, device="cuda")), "a copy to the host"),
        (
            lambda: torch.ones(3, device="cuda").copy_(torch.ones(3)),
            "a copy of (3,) from pageable memory",
        ),
    ],
)
def test_what_waits_is_seen(compute: Any, complaint: str) -> None:
    assert [wait.partition(" at ")[0] for wait in waits_of(compute)] == [complaint]


@pytest.mark.parametrize(
    ("compute", "complaint"),
    [
        (lambda: bool(torch.ones(3, device="cuda").all()), "aten._local_scalar_dense"),
        (lambda: torch.ones(3, device="cuda").nonzero(), "aten.nonzero"),
    ],
)
def test_values_that_are_read_are_seen(compute: Any, complaint: str) -> None:
    """There are none, so the reading fails as well."""
    with FakeCuda() as cuda, pytest.raises(RuntimeError):
        compute()
    assert [wait.partition(" at ")[0] for wait in cuda.waits] == [complaint]


def test_what_does_not_wait_passes() -> None:
    def compute() -> None:
        x = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
        (x + 1.0).to("cpu", non_blocking=True)

    assert waits_of(compute) == []


def test_tensors_of_both_devices_do_not_meet() -> None:
    with FakeCuda(), pytest.raises(RuntimeError, match="both devices"):
        torch.ones(3, device="cuda") + torch.ones(3)
