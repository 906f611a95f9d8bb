"""The embedded model: an image's bytes never depend on its batch-mates, at its real size and dtypes."""

import pytest
import torch

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.image_decoder import ImageDecoder
from safelight.pipeline.engine.image_files import encode_image
from safelight.pipeline.engine.text_encoder import TextEncoder
from safelight.pipeline.params import FinishReason, GenerationParams

Parts = tuple[ModelInfo, TextEncoder, Engine, ImageDecoder]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def parts(request: pytest.FixtureRequest) -> Parts:
    model = find_model("emoji-128")
    return (
        model,
        build_text_encoder(model),
        build_engine(model, dtype=request.param),
        build_decoder(model, dtype=request.param),
    )


def params(prompt: str, num_steps: int, guidance_scale: float, solver: str, seed: int) -> GenerationParams:
    return GenerationParams(prompt, "", 128, 128, num_steps, guidance_scale, solver, seed)


def generate(parts: Parts, requests: list[GenerationParams]) -> list[bytes]:
    """The files of all requests, which run at the same time."""
    model, encoder, engine, decoder = parts
    states = [encoder.encode([p.prompt])[0] for p in requests]
    empty = encoder.encode([""])[0]
    for number, p in enumerate(requests):
        engine.add(str(number), p, states[number], empty)
    outcomes: dict[int, SampleOutcome] = {}
    while engine.has_work:
        outcomes |= {int(o.request_id): o for o in engine.step()}
    assert all(o.reason is FinishReason.DONE for o in outcomes.values())
    pixels = decoder.decode([outcomes[n].latents for n in range(len(requests))])
    return [encode_image(px, "png", 100, p, model.id) for (px, _), p in zip(pixels, requests, strict=True)]


def test_bytes_are_the_same_alone_and_in_a_full_mixed_batch(parts: Parts) -> None:
    mixed = [
        params("a red apple", 20, 4.0, "dpmpp_2m", 1),
        params("rocket", 8, 1.0, "euler", 2),
        params("3d pizza", 30, 8.0, "ddpm", 3),
        params("noto cat face", 12, 2.5, "heun", 4),
        params("flat heart", 15, 6.0, "dpmpp_2m", 5),
        params("guitar", 25, 1.0, "ddpm", 6),
        params("umbrella", 10, 3.0, "euler", 7),
        params("green apple", 9, 5.5, "ddim", 8),
        params("ghost", 11, 2.0, "dpmpp_2m", 9),
    ]  # 16 rows: as many as a tick takes
    together = generate(parts, mixed)
    for index in (0, 3, 8):
        assert generate(parts, [mixed[index]])[0] == together[index]
    assert len(set(together)) == 9
