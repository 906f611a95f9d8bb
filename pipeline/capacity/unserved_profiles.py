"""Models that are not served here, as floating-point operations alone: what they are measured against.

N image tokens, L text tokens, S = N + L, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from safelight.models.checkpoints.published import CLIP_BIGG, CLIP_L, T5_XXL, VAE, VAE_16
from safelight.pipeline.capacity.image_cost import ModelProfile
from safelight.pipeline.diffusion.schedules import Flow, VariancePreserving
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.text import clip_flops, t5_flops
from safelight.pipeline.flops.vae import decode_flops

FLUX_WIDTH, FLUX_BLOCKS, FLUX_DOUBLE = (
    3072,
    57,
    19,
)  # of the blocks, those with a stream for each of image and text
FLUX_TEXT, FLUX_PATCH = 4096, 64  # channels of a text state, and of a token before it is projected
SDXL_UNET = 6.761e12  # one row at 1024 x 1024, 77 tokens: torch's counter on diffusers' UNet2DConditionModel
SDXL_SIDE = 128  # latent pixels


def flux_flops(height: int, width: int, text_tokens: int) -> int:
    """One row of FLUX.1's transformer (Black Forest Labs 2024) on latents of `height` x `width`: 24 S d^2 + 4 S^2 d a block.

    The modulations of all blocks and the projections in and out are a thousandth of it.
    """
    d, n = FLUX_WIDTH, (height // 2) * (width // 2)
    s = n + text_tokens
    modulations = 2 * d * d * (12 * FLUX_DOUBLE + 3 * (FLUX_BLOCKS - FLUX_DOUBLE) + 2)
    return (
        FLUX_BLOCKS * (24 * s * d * d + 4 * s * s * d)
        + modulations
        + 4 * n * FLUX_PATCH * d
        + 2 * text_tokens * FLUX_TEXT * d
    )


def sdxl_flops(height: int, width: int) -> int:
    """One row of SDXL's U-Net (Podell et al. 2023, arXiv:2307.01952), counted at 1024 x 1024 only: `InvalidParams` for another size."""
    if (height, width) != (SDXL_SIDE, SDXL_SIDE):
        raise InvalidParams(
            "size", f"size {8 * width}x{8 * height} was not counted for sdxl; allowed: 1024x1024"
        )
    return int(SDXL_UNET)


def _flux(name: str, num_steps: int, text_tokens: int) -> ModelProfile:
    """FLUX.1 knows its guidance from training: one row a step, unless a scale other than 1 is asked for."""
    return _unserved(
        name,
        num_steps,
        1.0,
        (T5_XXL, text_tokens),
        (CLIP_L,),
        partial(flux_flops, text_tokens=text_tokens),
        VAE_16,
    )


def _sdxl() -> ModelProfile:
    return _unserved("sdxl", 50, 5.0, None, (CLIP_L, CLIP_BIGG), sdxl_flops, VAE)


def _unserved(
    name: str,
    num_steps: int,
    guidance_scale: float,
    t5: tuple[dict[str, Any], int] | None,
    clips: tuple[dict[str, Any], ...],
    evaluation: Callable[[int, int], int],
    vae: dict[str, Any],
) -> ModelProfile:
    """What comes before the ticks is left out: it is a thousandth."""
    from safelight.models.checkpoints.options import checked
    from safelight.models.text.hf_clip import ClipTextConfig
    from safelight.models.text.t5 import T5EncoderConfig

    text = sum(clip_flops(checked(ClipTextConfig, clip, least=0)) for clip in clips)
    text += t5_flops(checked(T5EncoderConfig, t5[0], least=0), t5[1]) if t5 else 0
    return ModelProfile(
        name=name,
        native_size=(1024, 1024),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        solver="euler",
        timestep_spacing="linspace",
        schedule=Flow(3.0) if t5 else VariancePreserving("scaled_linear"),
        prediction="flow" if t5 else "epsilon",
        text=text,
        evaluation=evaluation,
        once=lambda num_times, num_texts: 0,
        decode=partial(decode_flops, vae),
    )


UNSERVED: dict[str, Callable[[], ModelProfile]] = {
    "flux.1-dev": partial(_flux, "flux.1-dev", 28, 512),
    "flux.1-schnell": partial(_flux, "flux.1-schnell", 4, 256),
    "sdxl": _sdxl,
}
