"""Profiles of models that are not served here, to compare with: FLUX.1 and SDXL.

N image tokens, L text tokens, S = N + L, d width.
"""

from collections.abc import Callable
from functools import partial

from safelight.models.autoencoders.options import read_options
from safelight.models.checkpoints.options import checked
from safelight.models.families.published import CLIP_BIGG, CLIP_L, T5_XXL, VAE_4, VAE_16
from safelight.models.families.spec import PublishedPart
from safelight.models.text.config import ClipTextConfig, T5EncoderConfig
from safelight.models.text.flops import clip_flops, t5_flops
from safelight.pipeline.capacity.image_cost import ModelProfile
from safelight.pipeline.diffusion.schedules import Flow, VariancePreserving
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.vae import decode_flops

FLUX_WIDTH, FLUX_BLOCKS = 3072, 57
FLUX_DOUBLE = 19  # blocks with a stream for each of image and text
FLUX_TEXT, FLUX_PATCH = 4096, 64  # channels of a text state, and of a token before it is projected
# One row at 1024 x 1024 with 77 tokens, by torch's counter on diffusers' UNet2DConditionModel.
SDXL_UNET = 6.761e12
SDXL_SIDE = 128  # latent pixels


def flux_flops(height: int, width: int, text_tokens: int) -> int:
    """Operations of one row of FLUX.1's transformer (Black Forest Labs 2024), latents `height` x `width`.

    A block is 24 S d^2 + 4 S^2 d. The modulations of all blocks and the projections in and out are a
    thousandth of the sum.
    """
    d, n = FLUX_WIDTH, (height // 2) * (width // 2)
    s = n + text_tokens
    modulations = 2 * d * d * (12 * FLUX_DOUBLE + 3 * (FLUX_BLOCKS - FLUX_DOUBLE) + 2)
    blocks = FLUX_BLOCKS * (24 * s * d * d + 4 * s * s * d)
    return blocks + modulations + 4 * n * FLUX_PATCH * d + 2 * text_tokens * FLUX_TEXT * d


def sdxl_flops(height: int, width: int) -> int:
    """Operations of one row of SDXL's U-Net (Podell et al. 2023, arXiv:2307.01952).

    They were counted for images of 1024 x 1024. Raises `InvalidParams` for another size.
    """
    if (height, width) != (SDXL_SIDE, SDXL_SIDE):
        raise InvalidParams(
            "size", f"size {8 * width}x{8 * height} was not counted for sdxl; allowed: 1024x1024"
        )
    return int(SDXL_UNET)


def _flux(name: str, num_steps: int, text_tokens: int) -> ModelProfile:
    """FLUX.1 was distilled with its guidance: one row a step, unless a scale other than 1 is asked for."""
    t5 = checked(T5EncoderConfig, T5_XXL.config, minimum=0)
    return ModelProfile(
        name=name,
        native_size=(1024, 1024),
        num_steps=num_steps,
        guidance_scale=1.0,
        solver="euler",
        timestep_spacing="linspace",
        schedule=Flow(3.0),
        prediction="flow",
        text=_clip_flops(CLIP_L) + t5_flops(t5, text_tokens),
        evaluation=partial(flux_flops, text_tokens=text_tokens),
        once=_nothing_once,
        decode=partial(decode_flops, read_options(VAE_16.config)),
    )


def _sdxl() -> ModelProfile:
    return ModelProfile(
        name="sdxl",
        native_size=(1024, 1024),
        num_steps=50,
        guidance_scale=5.0,
        solver="euler",
        timestep_spacing="linspace",
        schedule=VariancePreserving("scaled_linear"),
        prediction="epsilon",
        text=_clip_flops(CLIP_L) + _clip_flops(CLIP_BIGG),
        evaluation=sdxl_flops,
        once=_nothing_once,
        decode=partial(decode_flops, read_options(VAE_4.config)),
    )


def _clip_flops(part: PublishedPart) -> int:
    return clip_flops(checked(ClipTextConfig, part.config, minimum=0))


def _nothing_once(num_times: int, num_texts: int) -> int:
    """What is computed once a sample is left out: it is a thousandth of the ticks."""
    return 0


UNSERVED: dict[str, Callable[[], ModelProfile]] = {
    "flux.1-dev": partial(_flux, "flux.1-dev", 28, 512),
    "flux.1-schnell": partial(_flux, "flux.1-schnell", 4, 256),
    "sdxl": _sdxl,
}
