"""An image's bytes are the same alone and with any batch-mates, through all stages from prompt to file.

Generations, edits and inpaintings share batches. Schedules are random: which requests there are and when
they arrive, which are aborted, how many texts and latents share a batch. Every image that is finished is
compared with the same image alone.
"""

import io
import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner, engine_on
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.spacing import SPACINGS
from safelight.pipeline.engine.device_clock import HostClock
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.engine.image_files import encode_image
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.source_image import SourceImage
from safelight.pipeline.engine.text_encoder import TextEncoder, TextStates
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import EditParams, GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.dtypes import DTYPES
from tests.models.folders import write_sd3

REQUESTS = 24  # different ones, of which every schedule has some
PROMPTS = (
    "a red apple",
    "cat",
    "a very long prompt about a green car on a blue road, with many more words than sixteen",
)


@dataclass(frozen=True)
class Generated:
    """Files by the number of their request; how many ticks there were, and how many samples shared."""

    files: dict[int, bytes]
    ticks: int
    shared: int


@dataclass(frozen=True, eq=False)
class Parts:
    """The three stages of a model in a dtype."""

    model: ModelInfo
    dtype: torch.dtype

    def __post_init__(self) -> None:
        for name in ("encoder", "runner", "decoder"):
            getattr(self, name)

    @cached_property
    def encoder(self) -> TextEncoder:
        return build_text_encoder(self.model, dtype=self.dtype)

    @cached_property
    def runner(self) -> StepRunner:
        return build_runner(self.model, dtype=self.dtype)

    @cached_property
    def decoder(self) -> ImageDecoder:
        return build_decoder(self.model, dtype=self.dtype)

    def alone(self, request: GenerationParams) -> bytes:
        return generate(self, {0: request}, random.Random(0)).files[0]


def random_request(model: ModelInfo, rng: random.Random) -> GenerationParams:
    width, height = rng.choice([model.native_size, *model.sizes[:4]])
    solver = rng.choice(["ddim", *model.solvers])
    request = GenerationParams(
        prompt=rng.choice(PROMPTS),
        negative_prompt=rng.choice(["", "", "blurry"]),
        width=width,
        height=height,
        num_steps=rng.randint(3, 9),
        guidance_scale=rng.choice([0.0, 1.0, 2.5, 8.0]),
        solver=solver,
        eta=rng.choice([0.0, 0.5, 1.0]) if solver == "ddim" else 0.0,
        timestep_spacing=rng.choice(["trailing", *SPACINGS]) if solver != "plms" else "trailing",
        guidance_interval=rng.choice([(0.0, 1.0), (0.3, 0.8)]),
        guidance_stride=rng.choice([1, 1, 2, 4]),
        guidance_rescale=rng.choice([0.0, 0.7]),
        seed=rng.randrange(2**53),
    )
    kind = rng.choice(["generation", "edit", "inpainting"])
    strength = 1.0 if solver == "plms" else rng.uniform(0.2, 1.0)  # plms does not allow few steps
    edit = None if kind == "generation" else EditParams(strength, is_inpainting=kind == "inpainting")
    return replace(request, edit=edit)


def source_of(request: GenerationParams) -> SourceImage | None:
    """The source of an edit, random but always the same; of an inpainting with a rectangle to redraw."""
    if request.edit is None:
        return None
    rng = np.random.default_rng(request.seed)
    height, width = request.height, request.width
    pixels = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    redraw = None
    if request.edit.is_inpainting:
        redraw = np.zeros((height, width), np.uint8)
        redraw[rng.integers(0, height // 2) :, rng.integers(0, width // 2) : width - 5] = 255
    return SourceImage(pixels, redraw, (width, height), (0, 0, width, height))


def random_curve(parts: Parts, text_tokens: int, rng: random.Random) -> CostCurve:
    """A cost curve by which a tick is worth about 11 native rows, or any number of them."""
    width, height = parts.model.native_size
    row = float(forward_flops(parts.runner.network.config, height // 8, width // 8, text_tokens))
    return CostCurve((row, 8 * row, 16 * row), (0.01, 0.04, rng.choice([0.06, 0.12])))


def generate(parts: Parts, requests: dict[int, GenerationParams], rng: random.Random) -> Generated:
    """Generate `requests` by a random schedule, which may abort some of several.

    Several may be queued ahead of the device, as on a GPU.
    """
    states = encode_texts(parts, [*requests.values()], rng)
    sources = {
        number: parts.decoder.encode(source)[0]
        for number, request in requests.items()
        if (source := source_of(request)) is not None
    }
    max_rows = rng.randint(4, 16)
    curve = random_curve(parts, max(len(text.mask) for text in states.values()), rng)
    clock = HostClock(runs_ahead=len(requests) > 1 and rng.random() < 0.5)
    runner = replace(parts.runner, clock=clock)
    engine = engine_on(runner, parts.model, max_rows=max_rows, max_tokens=10**6).calibrated(curve)
    latents: dict[int, torch.Tensor] = {}
    ticks = shared = 0
    order = list(requests)
    rng.shuffle(order)
    while order or engine.has_work:
        engine._metering.curve = curve  # so that no clock decides which samples run
        for _ in range(min(len(order), rng.choice([0, 0, 1, 1, 2, 5]))):
            number = order.pop()
            request = requests[number]
            cond, uncond = states[request.prompt], states[request.negative_prompt]
            engine.add(str(number), request, cond, uncond, source=sources.get(number))
        if len(requests) > 1 and rng.random() < 0.03:
            engine.abort(str(rng.choice([*requests])))
        finishing = set(engine._finishing)  # their last tick is queued already
        step_of = {name: step for name, step in step_indices(engine).items() if name not in finishing}
        outcomes = engine.step()
        latents |= {int(o.request_id): o.latents for o in outcomes if o.latents is not None}
        done = {o.request_id for o in outcomes}
        step_of_next = step_indices(engine)
        num_advanced = sum(name in done or step_of_next.get(name, 0) > step for name, step in step_of.items())
        ticks += num_advanced > 0
        shared += num_advanced > 1
    return Generated(decode_files(parts, requests, latents, rng), ticks, shared)


def step_indices(engine: Engine) -> dict[str, int]:
    """The ticks done of every sample, by its request id."""
    samples = (*engine._running.values(), *engine._finishing.values(), *engine._queue)
    return {sample.request_id: sample.step_index for sample in samples}


def encode_texts(parts: Parts, requests: list[GenerationParams], rng: random.Random) -> dict[str, TextStates]:
    """The states of all texts, encoded in random batches."""
    texts = list(dict.fromkeys(text for p in requests for text in (p.prompt, p.negative_prompt)))
    rng.shuffle(texts)
    states: dict[str, TextStates] = {}
    while texts:
        batch = [texts.pop() for _ in range(min(len(texts), rng.randint(1, parts.encoder.max_batch)))]
        states |= dict(zip(batch, parts.encoder.encode(batch), strict=True))
    return states


def decode_files(
    parts: Parts,
    requests: dict[int, GenerationParams],
    latents: dict[int, torch.Tensor],
    rng: random.Random,
) -> dict[int, bytes]:
    """The files of all latents, decoded in random batches, by the number of their request."""
    files: dict[int, bytes] = {}
    numbers = list(latents)
    while numbers:
        batch = [numbers.pop() for _ in range(min(len(numbers), rng.randint(1, parts.decoder.max_batch)))]
        images = parts.decoder.decode([latents[number] for number in batch])
        for number, image in zip(batch, images, strict=True):
            assert not isinstance(image, InvalidImage)
            source = source_of(requests[number])
            pixels = image[0] if source is None else source.paste(image[0])
            files[number] = encode_image(pixels, "png", 100, requests[number], parts.model.id)
    return files


def check(parts: Parts, schedules: int) -> None:
    ticks = shared = compared = expected = 0
    num_requests = min(REQUESTS, max(9, schedules // 2))
    requests = [random_request(parts.model, random.Random(number)) for number in range(num_requests)]
    edits = [request.edit for request in requests]
    assert None in edits and {edit.is_inpainting for edit in edits if edit is not None} == {True, False}
    alone = [parts.alone(request) for request in requests]
    for seed in range(schedules):
        rng = random.Random(seed)
        numbers = rng.sample(range(num_requests), rng.randint(3, 9))
        batched = generate(parts, {number: requests[number] for number in numbers}, rng)
        for number, file in batched.files.items():
            assert file == alone[number], f"schedule {seed}: {requests[number]}"
        ticks, shared = ticks + batched.ticks, shared + batched.shared
        compared, expected = compared + len(batched.files), expected + len(numbers)
    assert shared > 0.5 * ticks, "too few ticks were shared with batch-mates"
    assert compared > 0.7 * expected, "too many images were aborted"


@pytest.fixture(scope="module", params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


@pytest.fixture(scope="module")
def num_schedules(request: pytest.FixtureRequest) -> int:
    return 200 if request.config.getoption("--long") else 48


def test_random_schedules_change_no_byte(dtype: torch.dtype, num_schedules: int) -> None:
    check(Parts(find_model("tiny"), dtype), num_schedules)


@pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers, which writes the folder
def test_random_schedules_change_no_byte_in_an_mmdit(
    dtype: torch.dtype, tmp_path: Path, num_schedules: int
) -> None:
    write_sd3(tmp_path / "sd3", "sd3.5-medium")
    check(Parts(find_model(str(tmp_path / "sd3")), dtype), num_schedules // 4)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"image_index": 1}, {"prompt": "a green car"}, {"edit": EditParams(0.5)},
        {"edit": EditParams(0.5, is_inpainting=True)},
    ],
    ids=str,
)  # fmt: skip
def test_the_comparison_can_fail(change: dict[str, Any]) -> None:
    """Pixels are compared: a file's bytes hold its parameters, so they differ in any case."""
    parts = Parts(find_model("tiny"), torch.float32)
    request = replace(random_request(parts.model, random.Random(0)), edit=None)
    assert request.guidance_scale > 0.0
    first, second = (pixels_of(parts.alone(p)) for p in (request, replace(request, **change)))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def pixels_of(file: bytes) -> np.ndarray:
    """The pixels (H, W, 3) of an image file."""
    return np.asarray(Image.open(io.BytesIO(file)))
