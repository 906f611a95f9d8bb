"""A picture's bytes, from its prompt to its file, are those that it has alone: in any company, through all three stages.

Schedules of neighbours are drawn at random: who comes when, who is aborted, texts and latents of how many together.
"""

import random
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from pipeline.build.curve import measure_curve
from pipeline.build.decoder import build_decoder
from pipeline.build.encoder import build_text_encoder
from pipeline.build.engine import engine_on
from pipeline.curve import CostCurve
from pipeline.decoder import Decoder, NotAPicture
from pipeline.encoder import TextEncoder, TextStates
from pipeline.images import encode_image
from pipeline.params import GenerationParams
from tests.pipeline.parts import model, params, runner

SCHEDULES = 200
DTYPES = [torch.float32, torch.bfloat16]
PROMPTS = ("a red apple", "cat", "a very long prompt about a green car on a blue road, with many more words than sixteen")
SIZES = ((64, 64), (64, 64), (96, 64), (48, 80))


@lru_cache
def encoder(dtype: torch.dtype) -> TextEncoder:
    return build_text_encoder(model(), dtype=dtype)


@lru_cache
def decoder(dtype: torch.dtype) -> Decoder:
    return build_decoder(model(), dtype=dtype)


def random_request(rng: random.Random) -> GenerationParams:
    width, height = rng.choice(SIZES)
    return params(
        prompt=rng.choice(PROMPTS), negative_prompt=rng.choice(["", "", "blurry"]), width=width, height=height,
        num_steps=rng.randint(3, 9), guidance_scale=rng.choice([0.0, 1.0, 2.5, 8.0]), solver=rng.choice(model().solvers),
        guidance_interval=rng.choice([(0.0, 1.0), (0.3, 0.8)]), guidance_rescale=rng.choice([0.0, 0.7]), seed=rng.randrange(2**53),
    )  # fmt: skip


def drawn(requests: list[GenerationParams], dtype: torch.dtype, rng: random.Random) -> dict[int, bytes]:
    """Files of `requests` by their place, of those that were not aborted; the first never is."""
    texts = list(dict.fromkeys(text for each in requests for text in (each.prompt, each.negative_prompt)))
    rng.shuffle(texts)
    states: dict[str, TextStates] = {}
    while texts:
        together = [texts.pop() for _ in range(min(len(texts), rng.randint(1, encoder(dtype).max_batch)))]
        states |= dict(zip(together, encoder(dtype).encode(together), strict=True))

    engine = engine_on(runner(dtype), model(), max_rows=rng.randint(2, 16))
    engine.curve = curve(dtype)
    latents: dict[int, torch.Tensor] = {}
    order = list(range(len(requests)))
    rng.shuffle(order)
    while order or engine.has_work:
        for _ in range(min(len(order), rng.choice([0, 0, 1, 1, 2, 5]))):
            number = order.pop()
            engine.add(str(number), requests[number], states[requests[number].prompt], states[requests[number].negative_prompt])
        if rng.random() < 0.05:
            engine.abort(str(rng.randint(1, len(requests))))
        latents |= {int(left.request_id): left.latents for left in engine.step() if left.latents is not None}

    files: dict[int, bytes] = {}
    done = list(latents)
    while done:
        together = [done.pop() for _ in range(min(len(done), rng.randint(1, decoder(dtype).max_batch)))]
        for number, picture in zip(together, decoder(dtype).decode([latents[number] for number in together]), strict=True):
            assert not isinstance(picture, NotAPicture)
            files[number] = encode_image(picture[0], "png", 100, requests[number], model().id)
    return files


@lru_cache
def curve(dtype: torch.dtype) -> CostCurve:
    return measure_curve(engine_on(runner(dtype), model()), model())


@lru_cache
def subject(number: int) -> GenerationParams:
    return random_request(random.Random(number))


@lru_cache
def alone(number: int, dtype: torch.dtype) -> bytes:
    return drawn([subject(number)], dtype, random.Random(0))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_200_schedules_of_neighbours_change_no_byte(dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    schedules = SCHEDULES if request.config.getoption("--long") else SCHEDULES // 10
    for seed in range(schedules):
        rng = random.Random(seed)
        neighbours = [random_request(rng) for _ in range(rng.randint(1, 9))]
        files = drawn([subject(seed % 8), *neighbours], dtype, rng)
        assert files[0] == alone(seed % 8, dtype), f"schedule {seed}"


def test_the_comparison_can_fail() -> None:
    assert alone(0, torch.float32) != drawn([replace(subject(0), seed=1)], torch.float32, random.Random(0))[0]
