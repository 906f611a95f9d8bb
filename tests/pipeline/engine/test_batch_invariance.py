"""An image's bytes, from its prompt to its file, are those that it has alone: in any company, through all three stages.

Schedules of neighbours are drawn at random: who comes when, who is aborted, texts and latents of how many together.
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
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.engine.image_files import encode_image
from safelight.pipeline.engine.text_encoder import TextStates
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
class Drawn:
    """Files of requests by their place, and of the first one's ticks how many there were and how many it shared."""

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
    def encoder(self):
        return build_text_encoder(self.model, dtype=self.dtype)

    @cached_property
    def runner(self):
        return build_runner(self.model, dtype=self.dtype)

    @cached_property
    def decoder(self):
        return build_decoder(self.model, dtype=self.dtype)

    def alone(self, number: int) -> bytes:
        return drawn(self, [subject(self.model, number)], random.Random(0)).files[0]


def random_request(model: ModelInfo, rng: random.Random) -> GenerationParams:
    width, height = rng.choice([model.native_size, *model.sizes[:4]])
    return GenerationParams(
        prompt=rng.choice(PROMPTS), negative_prompt=rng.choice(["", "", "blurry"]), width=width, height=height,
        num_steps=rng.randint(3, 9), guidance_scale=rng.choice([0.0, 1.0, 2.5, 8.0]), solver=rng.choice(model.solvers),
        guidance_interval=rng.choice([(0.0, 1.0), (0.3, 0.8)]), guidance_stride=rng.choice([1, 1, 2, 4]),
        guidance_rescale=rng.choice([0.0, 0.7]), seed=rng.randrange(2**53),
    )  # fmt: skip


def subject(model: ModelInfo, number: int) -> GenerationParams:
    return random_request(model, random.Random(number))


def curve_of(engine: Engine, model: ModelInfo, longest: int, rng: random.Random) -> CostCurve:
    """A cost curve on which a tick is worth about 11, or any number of native rows: given, so that no clock decides who runs."""
    width, height = model.native_size
    row = float(forward_flops(engine.config, height // 8, width // 8, longest))
    return CostCurve((row, 8 * row, 16 * row), (0.01, 0.04, rng.choice([0.06, 0.12])))


def drawn(parts: Parts, requests: list[GenerationParams], rng: random.Random) -> Drawn:
    """All of `requests` but those that were aborted, which the first never is."""
    texts = list(dict.fromkeys(text for each in requests for text in (each.prompt, each.negative_prompt)))
    rng.shuffle(texts)
    states: dict[str, TextStates] = {}
    while texts:
        together = [texts.pop() for _ in range(min(len(texts), rng.randint(1, parts.encoder.max_batch)))]
        states |= dict(zip(together, parts.encoder.encode(together), strict=True))

    engine = engine_on(parts.runner, parts.model, max_rows=rng.randint(4, 16), max_tokens=10**6)
    curve = curve_of(engine, parts.model, max(len(each.mask) for each in states.values()), rng)
    latents: dict[int, torch.Tensor] = {}
    ticks = shared = 0
    order = list(range(len(requests)))
    rng.shuffle(order)
    while order or engine.has_work:
        for _ in range(min(len(order), rng.choice([0, 0, 1, 1, 2, 5]))):
            number = order.pop()
            engine.add(
                str(number),
                requests[number],
                states[requests[number].prompt],
                states[requests[number].negative_prompt],
            )
        if rng.random() < 0.05:
            engine.abort(str(rng.randint(1, len(requests))))
        first = engine._running.get("0") or engine._waiting.get("0")
        step = first.step_index if first else 0
        engine.curve = curve
        latents |= {int(left.request_id): left.latents for left in engine.step() if left.latents is not None}
        first = engine._running.get("0")
        if first is not None and first.step_index > step:
            ticks += 1
            shared += engine.last_tick.rows > first.workload.rows[step]

    files: dict[int, bytes] = {}
    done = list(latents)
    while done:
        together = [done.pop() for _ in range(min(len(done), rng.randint(1, parts.decoder.max_batch)))]
        for number, image in zip(
            together, parts.decoder.decode([latents[number] for number in together]), strict=True
        ):
            assert not isinstance(image, InvalidImage)
            files[number] = encode_image(image[0], "png", 100, requests[number], parts.model.id)
    return Drawn(files, ticks, shared)


def check(parts: Parts, schedules: int) -> None:
    ticks = shared = 0
    alone = [parts.alone(number) for number in range(min(8, schedules))]
    for seed in range(schedules):
        rng = random.Random(seed)
        number = seed % len(alone)
        neighbours = [random_request(parts.model, rng) for _ in range(rng.randint(3, 9))]
        among = drawn(parts, [subject(parts.model, number), *neighbours], rng)
        assert among.files[0] == alone[number], f"schedule {seed}"
        ticks, shared = ticks + among.ticks, shared + among.shared
    assert shared > 0.5 * ticks, "there was hardly any company"


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def test_200_schedules_of_neighbours_change_no_byte(dtype: torch.dtype) -> None:
    check(Parts(find_model("tiny"), dtype), SCHEDULES)


@pytest.mark.filterwarnings("ignore")  # diffusers, which writes the folder, talks of its own future
def test_nor_do_they_in_an_mmdit(dtype: torch.dtype, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    write_sd3(tmp_path / "sd3", "sd3.5-medium")
    check(
        Parts(find_model(str(tmp_path / "sd3")), dtype),
        SCHEDULES if request.config.getoption("--long") else SCHEDULES // 10,
    )


def test_the_comparison_can_fail() -> None:
    parts = Parts(find_model("tiny"), torch.float32)
    other = [replace(subject(parts.model, 0), seed=1)]
    assert parts.alone(0) != drawn(parts, other, random.Random(0)).files[0]
