"""Whether the engine draws what diffusers draws from the same weights, noise, times and texts."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_device, fast_dtype
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner
from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop, load_loop
from safelight.pipeline.benchmark.replay import Progress
from safelight.pipeline.benchmark.trace import PROMPTS
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS
from safelight.pipeline.diffusion.solvers import Plan, plan
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.batcher import Limits

STYLES = ("", ", 3d", ", flat style", ", noto style")
TOGETHER = 8  # images of a batch
DRAWN = 12  # levels of 255 that a pixel must differ from white to belong to what is drawn


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Against diffusers in float32, over 32 prompts; PSNR inside what is drawn, because a white background flatters everyone."""

    float32_error: float  # of our latents in float32, the largest difference
    psnr_db: float  # of our images in the fast dtype, the median
    diffusers_psnr_db: float  # of diffusers' own in the fast dtype


def measure_fidelity(model: ModelInfo, progress: Progress, quantization: str = "none") -> Fidelity:
    """Every prompt drawn four times, in the fast dtype with `quantization`; `progress` is told how many images are done."""
    device, fast = fast_device(), fast_dtype()
    width, height = model.native_size
    prompts = [prompt + style for prompt in PROMPTS for style in STYLES]
    params = [
        GenerationParams(prompt, "", width, height, 20, 4.0, "dpmpp_2m", seed)
        for seed, prompt in enumerate(prompts)
    ]
    encoder = build_text_encoder(model)
    texts = {prompt: encoder.encode([prompt])[0] for prompt in (*prompts, "")}
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    latents: dict[tuple[str, torch.dtype], list[Tensor]] = {}
    for dtype in (torch.float32, fast):
        loop = load_loop(model, dtype, device, scale, is_compiled=False)
        runner = build_runner(model, dtype=dtype, quantization=quantization if dtype == fast else "none")
        engine = Engine(runner, partial(_their_plan, loop, model), scale, Limits(2 * TOGETHER, 10**9))
        for start in range(0, len(params), TOGETHER):
            some = params[start : start + TOGETHER]
            latents.setdefault(("theirs", dtype), []).extend(loop.draw(some, texts).cpu())
            latents.setdefault(("ours", dtype), []).extend(_drawn(engine, some, texts))
            progress(sum(map(len, latents.values())))
    images = {key: _decoded(build_decoder(model, dtype=key[1]), own) for key, own in latents.items()}
    wanted = images["theirs", torch.float32]
    pairs = zip(latents["ours", torch.float32], latents["theirs", torch.float32], strict=True)
    return Fidelity(
        float32_error=max(float((ours - theirs).abs().max()) for ours, theirs in pairs),
        psnr_db=statistics.median(map(_psnr, images["ours", fast], wanted)),
        diffusers_psnr_db=statistics.median(map(_psnr, images["theirs", fast], wanted)),
    )


def _their_plan(loop: DiffusersLoop, model: ModelInfo, params: GenerationParams) -> Plan:
    """Our solver at the times of diffusers' scheduler, whose grid ends elsewhere than ours and tells the network whole numbers."""
    scheduler = loop.schedulers[params.solver]()
    scheduler.set_timesteps(params.num_steps)
    told = [float(t) for t in scheduler.timesteps]
    is_flow = model.schedule.family == "flow"
    times = (
        [float(sigma) for sigma in scheduler.sigmas[:-1]]
        if is_flow
        else [(t + 1.0) / NUM_TRAIN_STEPS for t in told]
    )
    exact = plan(params.solver, model.schedule, model.prediction, params.num_steps, grid=(*times, 0.0))
    return replace(
        exact,
        start_scale=1.0,
        ticks=tuple(replace(tick, timestep=t) for tick, t in zip(exact.ticks, told, strict=True)),
    )


def _drawn(engine: Engine, params: Sequence[GenerationParams], texts: dict[str, TextStates]) -> list[Tensor]:
    for each in params:
        engine.add(str(each.seed), each, texts[each.prompt], texts[""])
    left: dict[str, Tensor | None] = {}
    while engine.has_work:
        left |= {outcome.request_id: outcome.latents for outcome in engine.step()}
    found = [left[str(each.seed)] for each in params]
    return [latents for latents in found if latents is not None]


def _decoded(decoder: ImageDecoder, latents: Sequence[Tensor]) -> list[np.ndarray]:
    images = [image for each in latents for image in decoder.decode([each])]
    return [image[0] for image in images if not isinstance(image, InvalidImage)]


def _psnr(image: np.ndarray, wanted: np.ndarray) -> float:
    """In dB, over the pixels of `wanted` that are not white."""
    inside = (wanted < 255 - DRAWN).any(axis=-1)
    if not inside.any():
        return float("inf")
    error = (image[inside].astype(np.float64) - wanted[inside]) / 255.0
    return float(-10.0 * np.log10(np.mean(error**2))) if error.any() else float("inf")
