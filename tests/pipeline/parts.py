"""Parts of the `tiny` model for engine tests: real networks with random weights, float32 or bfloat16."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.models.denoisers import load_network
from safelight.models.networks.dit import DiT
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine, build_runner, engine_on
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.guidance import needs_uncond
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.engine.previews import SamplePreview
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import NO_PREVIEWS, GenerationParams, PreviewRequest


@lru_cache
def model() -> ModelInfo:
    return find_model("tiny")


@lru_cache
def runner(dtype: torch.dtype = torch.float32) -> StepRunner:
    return build_runner(model(), dtype=dtype)


@lru_cache
def plain_network() -> DiT:
    """The oracle: the same weights in float32, not packed for the engine."""
    network = load_network(model().path / "transformer", "cpu", torch.float32)
    assert isinstance(network, DiT)
    return network


@lru_cache
def states(text: str) -> TextStates:
    return build_text_encoder(model()).encode([text])[0]


def engine(max_rows: int = 16, dtype: torch.dtype = torch.float32) -> Engine:
    return build_engine(model(), max_rows=max_rows, max_tokens=10**6, dtype=dtype)


def engine_on_used_network(max_rows: int = 16, dtype: torch.dtype = torch.float32) -> Engine:
    """A new engine, made at once, on a network that has read texts before: they are charged to nobody."""
    return engine_on(runner(dtype), model(), max_rows=max_rows, max_tokens=10**6)


def params(**changes: Any) -> GenerationParams:
    defaults: dict[str, Any] = {
        "prompt": "a red apple",
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "num_steps": 6,
        "guidance_scale": 4.0,
        "solver": "dpmpp_2m",
        "seed": 1,
        "image_index": 0,
    }
    return GenerationParams(**(defaults | changes))


def add(engine: Engine, request_id: str, p: GenerationParams, previews: PreviewRequest = NO_PREVIEWS) -> None:
    uncond = states(p.negative_prompt) if needs_uncond(p.guidance_scale) else None
    engine.add(request_id, p, states(p.prompt), uncond, previews=previews)


def drain(engine: Engine) -> dict[str, SampleOutcome]:
    outcomes: dict[str, SampleOutcome] = {}
    while engine.has_work:
        outcomes |= {o.request_id: o for o in engine.step()}
    return outcomes


def drain_one(engine: Engine, p: GenerationParams) -> SampleOutcome:
    """The outcome of `p` in `engine`, by itself."""
    add(engine, "only", p)
    return drain(engine)["only"]


def previews_alone(
    p: GenerationParams, previews: PreviewRequest, dtype: torch.dtype = torch.float32
) -> list[SamplePreview]:
    """The previews of `p` in an engine of its own."""
    fresh_engine = engine_on_used_network(dtype=dtype)
    add(fresh_engine, "only", p, previews)
    drain(fresh_engine)
    return fresh_engine.take_previews()


def latents_of(outcome: SampleOutcome) -> Tensor:
    """The latents of a sample that has them."""
    assert outcome.latents is not None
    return outcome.latents


def alone(p: GenerationParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """The latents of `p` in an engine of its own."""
    fresh_engine = engine_on_used_network(dtype=dtype)
    add(fresh_engine, "only", p)
    return latents_of(drain(fresh_engine)["only"])


def decode(decoder: ImageDecoder, latents: Sequence[Tensor]) -> list[np.ndarray]:
    """The pixels (H, W, 3) uint8 of latents, all of which can be decoded."""
    images: list[np.ndarray] = []
    for result in decoder.decode(latents):
        assert not isinstance(result, InvalidImage), result
        images.append(result[0])
    return images


def assert_rounded(pixels: np.ndarray, expected: np.ndarray) -> None:
    """Assert that `pixels` (H, W, 3) are `expected` in 0..1 as the nearest of 256 levels."""
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels - 255.0 * expected).max() < 0.51  # a convolution may sum in another order
