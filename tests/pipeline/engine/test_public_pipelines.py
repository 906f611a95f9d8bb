"""Every public family, from prompt to pixels, against diffusers' own pipeline from the same noise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline, PixArtAlphaPipeline, StableDiffusion3Pipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.dit import pipeline_dit
from torch import Tensor

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import ImageDecoder
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.batcher import Limits
from tests.models.folders import SAMPLE_SIZE, write_dit, write_pixart, write_sd3
from tests.pipeline.parts import assert_rounded, decode, drain

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' deprecation warnings

STEPS, SIDE = 10, 8 * SAMPLE_SIZE
FAMILIES: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "pixart-alpha": lambda folder: write_pixart(folder, "alpha"),
    "pixart-sigma": lambda folder: write_pixart(folder, "sigma"),
    "sd3": lambda folder: write_sd3(folder, "sd3"),
    "sd3 without T5": lambda folder: write_sd3(folder, "sd3", with_t5=False),
    "sd3.5-medium": lambda folder: write_sd3(folder, "sd3.5-medium"),
    "sd3.5-large": lambda folder: write_sd3(folder, "sd3.5-large"),
    "dit": write_dit,
}
SOLVERS = {
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DDIMScheduler": "ddim",
}


def their_plan(pipe: DiffusionPipeline, model: ModelInfo, params: GenerationParams) -> Plan:
    """Our plan where theirs is equal; else our solver on their grid, which starts below 1 or omits t = 0."""
    if isinstance(pipe, StableDiffusion3Pipeline):
        return plan_request(params, model)
    pipe.scheduler.set_timesteps(STEPS)
    times = [float(t) for t in pipe.scheduler.timesteps]
    grid = (*((t + 1.0) / 1000.0 for t in times), 0.0)
    exact = make_plan(
        SOLVERS[type(pipe.scheduler).__name__], model.schedule, model.prediction, STEPS, grid=grid
    )
    assert [tick.timestep for tick in exact.ticks] == pytest.approx(times, abs=1e-3)
    return replace(exact, start_scale=1.0)


def our_latents(model: ModelInfo, table: Plan, params: GenerationParams) -> Tensor:
    engine = Engine(
        build_runner(model, dtype=torch.float32), lambda _: table, latent_scale=8, limits=Limits(2, 10**6)
    )
    encoder = build_text_encoder(model, dtype=torch.float32)
    cond, uncond = encoder.encode([params.prompt, params.negative_prompt])
    engine.add("only", params, cond, uncond)
    latents = drain(engine)["only"].latents
    assert latents is not None
    return latents


def their_image(
    pipe: DiffusionPipeline, params: GenerationParams, start: Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, np.ndarray]:
    """Their final latents (C, h, w), taken before their decoder, and their pixels (H, W, 3) in 0..1."""
    inputs: list[Tensor] = []
    decode = pipe.vae.decode

    def record_and_decode(latents: Tensor, **options: Any) -> Any:
        inputs.append(latents)
        return decode(latents, **options)

    monkeypatch.setattr(pipe.vae, "decode", record_and_decode)
    options: dict[str, Any] = {
        "num_inference_steps": STEPS, "guidance_scale": params.guidance_scale, "output_type": "np",
    }  # fmt: skip
    if isinstance(pipe, DiTPipeline):  # it draws its own noise
        monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: start)
        pixels = pipe(class_labels=[int(params.prompt)], **options).images[0]
    else:
        if isinstance(pipe, PixArtAlphaPipeline):
            _pass_the_size(pipe, params, monkeypatch)
        if not isinstance(pipe, StableDiffusion3Pipeline):
            options |= {"use_resolution_binning": False, "clean_caption": False}
        options |= {"height": params.height, "width": params.width}
        prompts = {"prompt": params.prompt, "negative_prompt": params.negative_prompt}
        pixels = pipe(**prompts, latents=start, **options).images[0]
    return (inputs[0][0] - (pipe.vae.config.shift_factor or 0.0)) * pipe.vae.config.scaling_factor, pixels


def _pass_the_size(
    pipe: DiffusionPipeline, params: GenerationParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pass the size to the network, which their pipeline does only for a sample size of 128."""
    rows = [[params.height, params.width]] * 2
    size = {
        "resolution": torch.tensor(rows, dtype=torch.float32),
        "aspect_ratio": torch.tensor([[h / w] for h, w in rows]),
    }
    forward = pipe.transformer.forward
    monkeypatch.setattr(
        pipe.transformer,
        "forward",
        lambda *args, **options: forward(*args, **options | {"added_cond_kwargs": size}),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_latents_and_pixels_equal_diffusers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = FAMILIES[name](tmp_path)
    model = find_model(str(tmp_path))
    prompt, negative = ("207", "") if name == "dit" else ("a red apple", "blurry")
    params = GenerationParams(
        prompt, negative, SIDE, SIDE, STEPS, 4.0, model.solver, 1, timestep_spacing=model.timestep_spacing
    )
    shape = (pipe.transformer.config.in_channels, SAMPLE_SIZE, SAMPLE_SIZE)
    start = noise.draw(1, 0, noise.START, shape)[None]
    ours = our_latents(model, their_plan(pipe, model, params), params)
    theirs, their_pixels = their_image(pipe, params, start, monkeypatch)
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    decoder = build_decoder(model, dtype=torch.float32)
    from_ours, from_theirs = decode(decoder, [ours, theirs])
    assert_rounded(from_theirs, their_pixels)
    assert np.abs(from_ours - 255.0 * their_pixels).max() < 1.5  # the latents differ in their last digits
    assert_any_shape_decodes_as_diffusers_does(pipe, decoder)


def assert_any_shape_decodes_as_diffusers_does(pipe: DiffusionPipeline, decoder: ImageDecoder) -> None:
    """On latents that are no square, so that height and width cannot be exchanged."""
    config = pipe.vae.config
    latents = torch.randn(config.latent_channels, 4, 7, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        decoded = pipe.vae.decode(latents[None] / config.scaling_factor + (config.shift_factor or 0.0)).sample
    expected = VaeImageProcessor().postprocess(decoded, output_type="np")[0]
    assert expected.std() > 0.05
    [pixels] = decode(decoder, [latents])
    assert pixels.shape == (32, 56, 3)
    assert_rounded(pixels, expected)
