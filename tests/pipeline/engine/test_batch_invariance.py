"""An image's bytes are the same alone and with any batch-mates, through all stages from prompt to file.

Schedules are random: when requests arrive, which are aborted, how many texts and latents share a batch.
"""

import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest
import torch

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner, engine_on
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.engine.image_files import encode_image
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextEncoder, TextStates
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.models.folders import write_sd3

SCHEDULES = 200
DTYPES = [torch.float32, torch.bfloat16]
PROMPTS = (
    "a red apple",
    "cat",
    "a very long prompt about a green car on a blue road, with many more words than sixteen",
)


@dataclass(frozen=True)
class Generated:
    """Files by the index of their request; of the first request, its ticks and how many it shared."""

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

    def alone(self, number: int) -> bytes:
        return generate(self, [subject(self.model, number)], random.Random(0)).files[0]


def random_request(model: ModelInfo, rng: random.Random) -> GenerationParams:
    width, height = rng.choice([model.native_size, *model.sizes[:4]])
    return GenerationParams(
        prompt=rng.choice(PROMPTS),
        negative_prompt=rng.choice(["", "", "blurry"]),
        width=width,
        height=height,
        num_steps=rng.randint(3, 9),
        guidance_scale=rng.choice([0.0, 1.0, 2.5, 8.0]),
        solver=rng.choice(model.solvers),
        guidance_interval=rng.choice([(0.0, 1.0), (0.3, 0.8)]),
        guidance_stride=rng.choice([1, 1, 2, 4]),
        guidance_rescale=rng.choice([0.0, 0.7]),
        seed=rng.randrange(2**53),
    )


def subject(model: ModelInfo, number: int) -> GenerationParams:
    return random_request(model, random.Random(number))


def random_curve(parts: Parts, text_tokens: int, rng: random.Random) -> CostCurve:
    """A cost curve by which a tick is worth about 11 native rows, or any number of them."""
    width, height = parts.model.native_size
    row = float(forward_flops(parts.runner.network.config, height // 8, width // 8, text_tokens))
    return CostCurve((row, 8 * row, 16 * row), (0.01, 0.04, rng.choice([0.06, 0.12])))


def generate(parts: Parts, requests: list[GenerationParams], rng: random.Random) -> Generated:
    """Generate `requests` by a random schedule, which may abort any but the first."""
    states = encode_texts(parts, requests, rng)
    max_rows = rng.randint(4, 16)
    curve = random_curve(parts, max(len(text.mask) for text in states.values()), rng)
    engine = engine_on(parts.runner, parts.model, max_rows=max_rows, max_tokens=10**6).calibrated(curve)
    latents: dict[int, torch.Tensor] = {}
    ticks = shared = 0
    order = list(range(len(requests)))
    rng.shuffle(order)
    while order or engine.has_work:
        engine._metering.curve = curve  # so that no clock decides which samples run
        for _ in range(min(len(order), rng.choice([0, 0, 1, 1, 2, 5]))):
            number = order.pop()
            request = requests[number]
            engine.add(str(number), request, states[request.prompt], states[request.negative_prompt])
        if rng.random() < 0.05:
            engine.abort(str(rng.randint(1, len(requests))))
        first = engine._running.get("0") or engine._queue.get("0")
        step = first.step_index if first else 0
        outcomes = engine.step()
        latents |= {int(o.request_id): o.latents for o in outcomes if o.latents is not None}
        first = engine._running.get("0")
        if first is not None and first.step_index > step:
            ticks += 1
            assert engine.last_tick is not None
            shared += engine.last_tick.rows > first.workload.rows[step]
    return Generated(decode_files(parts, requests, latents, rng), ticks, shared)


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
    requests: list[GenerationParams],
    latents: dict[int, torch.Tensor],
    rng: random.Random,
) -> dict[int, bytes]:
    """The files of all latents, decoded in random batches, by the index of their request."""
    files: dict[int, bytes] = {}
    numbers = list(latents)
    while numbers:
        batch = [numbers.pop() for _ in range(min(len(numbers), rng.randint(1, parts.decoder.max_batch)))]
        images = parts.decoder.decode([latents[number] for number in batch])
        for number, image in zip(batch, images, strict=True):
            assert not isinstance(image, InvalidImage)
            files[number] = encode_image(image[0], "png", 100, requests[number], parts.model.id)
    return files


def check(parts: Parts, schedules: int) -> None:
    ticks = shared = 0
    alone = [parts.alone(number) for number in range(min(8, schedules))]
    for seed in range(schedules):
        rng = random.Random(seed)
        number = seed % len(alone)
        batch_mates = [random_request(parts.model, rng) for _ in range(rng.randint(3, 9))]
        batched = generate(parts, [subject(parts.model, number), *batch_mates], rng)
        assert batched.files[0] == alone[number], f"schedule {seed}"
        ticks, shared = ticks + batched.ticks, shared + batched.shared
    assert shared > 0.5 * ticks, "too few ticks were shared with batch-mates"


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    dtype: torch.dtype = request.param
    return dtype


def test_200_random_schedules_change_no_byte(dtype: torch.dtype) -> None:
    check(Parts(find_model("tiny"), dtype), SCHEDULES)


@pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers, which writes the folder
def test_random_schedules_change_no_byte_in_an_mmdit(
    dtype: torch.dtype, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_sd3(tmp_path / "sd3", "sd3.5-medium")
    check(
        Parts(find_model(str(tmp_path / "sd3")), dtype),
        SCHEDULES if request.config.getoption("--long") else SCHEDULES // 10,
    )


def test_the_comparison_can_fail() -> None:
    parts = Parts(find_model("tiny"), torch.float32)
    other = [replace(subject(parts.model, 0), seed=1)]
    assert parts.alone(0) != generate(parts, other, random.Random(0)).files[0]
