"""Latents and pixels against diffusers' own pipeline on the same folder, which uses none of our code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtSigmaPipeline

from safelight.models.checkpoints.plain_copy import write_plain_copy
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.schedules import Flow
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.batcher import Limits
from tests.pipeline.parts import assert_rounded, decode, drain

STEPS = 20


def their_plan(pipe: PixArtSigmaPipeline) -> Plan:
    """Our solver on their grid: it starts below 1, and their network sees times cut to integers."""
    pipe.scheduler.set_timesteps(STEPS)
    exact = make_plan("dpmpp_2m", Flow(), "flow", STEPS, grid=tuple(float(s) for s in pipe.scheduler.sigmas))
    ticks = tuple(
        replace(tick, timestep=float(t))
        for tick, t in zip(exact.ticks, pipe.scheduler.timesteps, strict=True)
    )
    return replace(exact, ticks=ticks, start_scale=1.0)


def our_latents(
    model: ModelInfo, table: Plan, params: GenerationParams, cond: TextStates, uncond: TextStates | None
) -> torch.Tensor:
    engine = Engine(
        build_runner(model, dtype=torch.float32), lambda _: table, latent_scale=8, limits=Limits(2, 10**6)
    )
    engine.add("only", params, cond, uncond)
    latents = drain(engine)["only"].latents
    assert latents is not None
    return latents


@pytest.mark.filterwarnings("ignore")  # diffusers' deprecation warnings
@pytest.mark.parametrize("name", ["tiny", "emoji-128"])
def test_latents_and_pixels_equal_diffusers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_model(name)
    width, height = model.native_size
    params = GenerationParams("a red apple", "", width, height, STEPS, 4.0, "dpmpp_2m", 1)
    cond, uncond = build_text_encoder(model).encode([params.prompt, ""])
    write_plain_copy(model.path, tmp_path)
    pipe = PixArtSigmaPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    shape = (pipe.transformer.config.in_channels, height // 8, width // 8)
    latents: list[torch.Tensor] = []
    their_decode = pipe.vae.decode

    def record_and_decode(z: torch.Tensor, **options: Any) -> Any:
        latents.append(z)
        return their_decode(z, **options)

    monkeypatch.setattr(pipe.vae, "decode", record_and_decode)
    their_pixels = pipe(
        negative_prompt=None,
        prompt_embeds=cond.states[None],
        prompt_attention_mask=cond.mask[None].long(),
        negative_prompt_embeds=uncond.states[None],
        negative_prompt_attention_mask=uncond.mask[None].long(),
        latents=noise.draw(params.seed, params.image_index, noise.START, shape)[None],
        num_inference_steps=STEPS,
        guidance_scale=params.guidance_scale,
        height=height,
        width=width,
        use_resolution_binning=False,
        output_type="np",
    ).images[0]
    ours = our_latents(model, their_plan(pipe), params, cond, uncond)
    theirs = latents[0][0] * pipe.vae.config.scaling_factor
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert their_pixels.std() > 0.05
    from_ours, from_theirs = decode(build_decoder(model, dtype=torch.float32), [ours, theirs])
    assert_rounded(from_theirs, their_pixels)
    assert np.abs(from_ours - 255.0 * their_pixels).max() < 1.5  # the latents differ in their last digits
