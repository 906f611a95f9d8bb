"""The engine on a device: the same images in any batch, a queue of ticks, no waiting, memory."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safelight.models.families.published_shapes import find_shape
from safelight.pipeline.assembly.random_weights import random_runner, random_text
from safelight.pipeline.capacity.model_profiles import checkpoint_profile
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.engine.device_clock import HostClock, HostMark, clock_of
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.batcher import Limits

logger = logging.getLogger(__name__)  # warnings, so that the report shows them

IMAGE = GenerationParams("", "", 64, 64, 5, 4.0, "dpmpp_2m", seed=0)
IMAGES: Sequence[GenerationParams] = (
    IMAGE,
    replace(IMAGE, seed=1, width=96, num_steps=3, guidance_scale=1.0),
    replace(IMAGE, seed=2, solver="euler_ancestral", guidance_rescale=0.7),
    replace(IMAGE, seed=3, num_steps=8, guidance_stride=2),
    replace(IMAGE, seed=4, guidance_interval=(0.3, 0.8)),
)
FAMILIES = ["pixart-sigma", "sd3.5-medium", "dit"]


def make_engine(name: str, device: torch.device, dtype: torch.dtype, runs_ahead: bool = True) -> Engine:
    """An engine for the tiny form of a published checkpoint; the same weights every time on a processor."""
    family, published = find_shape(f"tiny-{name}")
    profile = checkpoint_profile(family, published)
    torch.manual_seed(0)
    runner = random_runner(family, published, device, dtype)
    runner.clock = clock_of(device) if runs_ahead and device.type == "cuda" else WaitingClock(runs_ahead)

    def plan(params: GenerationParams) -> Plan:
        return make_plan(params.solver, profile.schedule, profile.prediction, params.num_steps)

    return Engine(runner, plan, profile.scale, Limits(32, 10**6))


class WaitingClock(HostClock):
    """A clock that waits for the device at each mark, if it has to."""

    def mark(self) -> HostMark:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return super().mark()


def draw(engine: Engine, name: str, images: Sequence[GenerationParams]) -> list[Tensor]:
    """The latents of `images`, drawn together."""
    family, published = find_shape(f"tiny-{name}")
    cond, uncond = (random_text(family, published, seed) for seed in (1, 2))
    for number, image in enumerate(images):
        engine.add(str(number), image, cond, uncond)
    latents: dict[str, Tensor] = {}
    while engine.has_work:
        for outcome in engine.step():
            assert outcome.latents is not None, outcome.error
            latents[outcome.request_id] = outcome.latents
    return [latents[str(number)] for number in range(len(images))]


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """Raise at every operation that waits for the GPU. On a processor there is none."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", FAMILIES)
def test_no_tick_synchronises(device: torch.device, dtype: torch.dtype, name: str) -> None:
    engine = make_engine(name, device, dtype)
    draw(engine, name, IMAGES)  # libraries may wait when they are used for the first time
    with no_synchronisation(device):
        draw(engine, name, IMAGES)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_queue_of_ticks_changes_no_bit(device: torch.device, dtype: torch.dtype, name: str) -> None:
    engines = [make_engine(name, device, dtype, runs_ahead) for runs_ahead in (True, False)]
    ahead, waiting = (draw(engine, name, IMAGES) for engine in engines)
    for one, other in zip(ahead, waiting, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_is_the_same_with_batch_mates(device: torch.device, dtype: torch.dtype, name: str) -> None:
    """To the bit on a processor; on a GPU to rounding, and how many to the bit is logged."""
    engine = make_engine(name, device, dtype)
    together = draw(engine, name, IMAGES)
    alone = [draw(engine, name, [image])[0] for image in IMAGES]
    same = [torch.equal(one, other) for one, other in zip(alone, together, strict=True)]
    logger.warning("%s on %s: %d of %d images have the same bits", name, device.type, sum(same), len(same))
    if device.type == "cpu":
        assert all(same)
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-3
    for one, other in zip(alone, together, strict=True):
        assert (one - other).norm() <= tolerance * one.norm()
