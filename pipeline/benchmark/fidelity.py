"""Compares the engine's images with those of diffusers from the same weights, noise, times and texts."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_device, fast_dtype
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner
from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop, load_loop
from safelight.pipeline.benchmark.trace import PROMPTS
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.batcher import Limits

STYLES = ("", ", 3d", ", flat style", ", noto style")
BATCH = 8  # images
BACKGROUND_TOLERANCE = 12  # of 255: a pixel that differs more from white belongs to the depicted object
MAX_PSNR = 100.0  # stands for equal images, because JSON has no infinity
NUM_IMAGES = 4 * len(PROMPTS) * len(STYLES)  # by engine and diffusers, in float32 and the fast dtype


class _Setting(NamedTuple):
    """How the engine's network runs; diffusers' has the same dtype."""

    dtype: torch.dtype
    quantization: str


_Series = tuple[str, _Setting]  # `engine` or `diffusers`, and its setting


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Differences from diffusers in float32, over 32 prompts.

    PSNR counts only pixels of the depicted object, because a white background would raise it for any image.
    """

    float32_error: float  # largest absolute difference of the engine's latents in float32
    psnr_db: float  # median over the engine's images in the fast dtype
    diffusers_psnr_db: float  # median over diffusers' own images in the fast dtype


def measure_fidelity(
    model: ModelInfo, on_done: Callable[[int], None], quantization: str = "none"
) -> Fidelity:
    """Generate every prompt four times: by the engine and by diffusers, in float32 and in the fast dtype.

    The engine uses `quantization` in the fast dtype only. `on_done` is called with the number of images done.
    """
    device, fast = fast_device(), fast_dtype()
    params = _requests(model)
    encoder = build_text_encoder(model)
    texts = {prompt: encoder.encode([prompt])[0] for prompt in (*(image.prompt for image in params), "")}
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    latents: dict[_Series, list[Tensor]] = {}
    exact, served = _Setting(torch.float32, "none"), _Setting(fast, quantization)
    for setting in dict.fromkeys((exact, served)):  # one, where float32 is the fast dtype
        loop = load_loop(model, setting.dtype, device, scale, is_compiled=False)
        runner = build_runner(model, dtype=setting.dtype, quantization=setting.quantization)
        engine = Engine(
            runner, partial(_plan_on_diffusers_grid, loop, model), scale, Limits(2 * BATCH, 10**9)
        )
        for start in range(0, len(params), BATCH):
            batch = params[start : start + BATCH]
            latents.setdefault(("diffusers", setting), []).extend(loop.generate(batch, texts).cpu())
            latents.setdefault(("engine", setting), []).extend(_generate(engine, batch, texts))
            on_done(sum(map(len, latents.values())))
    images = {key: _decode(build_decoder(model, dtype=key[1].dtype), latents[key]) for key in latents}
    expected = images["diffusers", exact]
    pairs = zip(latents["engine", exact], latents["diffusers", exact], strict=True)
    return Fidelity(
        float32_error=max(float((ours - theirs).abs().max()) for ours, theirs in pairs),
        psnr_db=statistics.median(map(_psnr, images["engine", served], expected)),
        diffusers_psnr_db=statistics.median(map(_psnr, images["diffusers", served], expected)),
    )


def _requests(model: ModelInfo) -> list[GenerationParams]:
    width, height = model.native_size
    prompts = [prompt + style for prompt in PROMPTS for style in STYLES]
    return [
        GenerationParams(prompt, "", width, height, 20, 4.0, "dpmpp_2m", seed)
        for seed, prompt in enumerate(prompts)
    ]


def _plan_on_diffusers_grid(loop: DiffusersLoop, model: ModelInfo, params: GenerationParams) -> Plan:
    """Our solver at the times of diffusers' scheduler.

    Its grid ends at another time than ours, and it passes integer timesteps to the network.
    """
    scheduler = loop.schedulers[params.solver]()
    scheduler.set_timesteps(params.num_steps)
    timesteps = [float(t) for t in scheduler.timesteps]
    if model.schedule.family == "flow":
        times = [float(sigma) for sigma in scheduler.sigmas[:-1]]
    else:
        times = [(t + 1.0) / NUM_TRAIN_STEPS for t in timesteps]
    exact = make_plan(params.solver, model.schedule, model.prediction, params.num_steps, grid=(*times, 0.0))
    return replace(
        exact,
        start_scale=1.0,
        ticks=tuple(replace(tick, timestep=t) for tick, t in zip(exact.ticks, timesteps, strict=True)),
    )


def _generate(
    engine: Engine, batch: Sequence[GenerationParams], texts: dict[str, TextStates]
) -> list[Tensor]:
    for params in batch:
        engine.add(str(params.seed), params, texts[params.prompt], texts[""])
    latents: dict[str, Tensor | None] = {}
    while engine.has_work:
        latents |= {outcome.request_id: outcome.latents for outcome in engine.step()}
    in_order = (latents[str(params.seed)] for params in batch)
    return [image_latents for image_latents in in_order if image_latents is not None]


def _decode(decoder: ImageDecoder, latents: Sequence[Tensor]) -> list[np.ndarray]:
    results = [result for image_latents in latents for result in decoder.decode([image_latents])]
    return [result[0] for result in results if not isinstance(result, InvalidImage)]


def _psnr(image: np.ndarray, expected: np.ndarray) -> float:
    """PSNR in dB over the pixels of `expected` that are not white."""
    inside = (expected < 255 - BACKGROUND_TOLERANCE).any(axis=-1)
    if not inside.any():
        return MAX_PSNR
    error = (image[inside].astype(np.float64) - expected[inside]) / 255.0
    return min(float(-10.0 * np.log10(np.mean(error**2))), MAX_PSNR) if error.any() else MAX_PSNR
