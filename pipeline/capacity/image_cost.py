"""The floating-point operations of one image, by stage, from a model's profile. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from safelight.models.families.image_sizes import MAX_SIDE
from safelight.pipeline.catalog.model_info import MAX_GUIDANCE_SCALE, MAX_STEPS, MIN_GUIDANCE_SCALE, MIN_STEPS
from safelight.pipeline.diffusion.guidance import needs_cond, needs_uncond
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.solvers import make_plan
from safelight.pipeline.errors import InvalidParams

Size = tuple[int, int]  # width, height, in pixels


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model as operation counts and defaults.

    A text is a prompt or a negative prompt at full length. Latents are given as (height, width) in latent
    pixels.

    Attributes:
        name: the model's name.
        native_size: (width, height) in pixels.
        num_steps: default number of denoising steps.
        guidance_scale: default guidance scale.
        solver: default solver.
        timestep_spacing: default spacing of the solver's times.
        schedule: the model's noise schedule.
        prediction: what the network predicts, such as "flow" or "epsilon".
        text: operations of all text encoders for one text.
        evaluation: operations of one row in a tick, by the height and width of its latents.
        once: operations of an image before its first tick, by the number of times in its plan and of its
            texts.
        decode: operations of decoding an image, by the height and width of its latents.
        scale: pixels on the side of a latent pixel.
        patch: latent pixels on the side of a token.
        sizes: the only sizes that the model serves; empty if it serves every multiple of a token.
        text_bytes: bytes of a text's states as they go from stage to stage; 0 for a model that is not served.
        latent_channels: channels of a latent pixel.
        request_size: default (width, height) of a request; None: the native size.
    """

    name: str
    native_size: Size
    num_steps: int
    guidance_scale: float
    solver: str
    timestep_spacing: str
    schedule: Schedule
    prediction: str
    text: int
    evaluation: Callable[[int, int], int]
    once: Callable[[int, int], int]
    decode: Callable[[int, int], int]
    scale: int = 8
    patch: int = 2
    sizes: tuple[Size, ...] = ()
    text_bytes: int = 0
    latent_channels: int = 4
    request_size: Size | None = None

    @property
    def default_size(self) -> Size:
        return self.request_size or self.native_size


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The parameters of a request that decide what its image costs."""

    size: Size
    num_steps: int
    guidance_scale: float
    solver: str


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What one image costs.

    Attributes:
        encode: operations of the text encoders.
        once: operations of the denoiser before the first tick.
        ticks: operations of each tick.
        decode: operations of the decoder.
        rows: rows of the image in a tick.
        tokens: image tokens of a row.
    """

    encode: float
    once: float
    ticks: tuple[float, ...]
    decode: float
    rows: int
    tokens: int

    @property
    def denoise(self) -> float:
        """Operations of the denoiser."""
        return self.once + sum(self.ticks)

    @property
    def total(self) -> float:
        """Operations of all stages."""
        return self.encode + self.denoise + self.decode


def image_cost(profile: ModelProfile, spec: ImageSpec) -> ImageCost:
    """The cost of one image whose texts are not cached.

    Raises `InvalidParams` for a `spec` that the model cannot serve.
    """
    _check(profile, spec)
    width, height = (side // profile.scale for side in spec.size)
    solver_plan = make_plan(
        spec.solver, profile.schedule, profile.prediction, spec.num_steps, spacing=profile.timestep_spacing
    )
    rows = needs_cond(spec.guidance_scale) + needs_uncond(spec.guidance_scale)
    return ImageCost(
        encode=rows * profile.text,
        once=profile.once(solver_plan.nfe, rows),
        ticks=(rows * profile.evaluation(height, width),) * solver_plan.nfe,
        decode=profile.decode(height, width),
        rows=rows,
        tokens=(height // profile.patch) * (width // profile.patch),
    )


def _check(profile: ModelProfile, spec: ImageSpec) -> None:
    size = f"{spec.size[0]}x{spec.size[1]}"
    token_side = profile.scale * profile.patch
    if profile.sizes and spec.size not in profile.sizes:
        allowed = ", ".join(f"{w}x{h}" for w, h in profile.sizes)
        raise InvalidParams("size", f"size {size} is not served by {profile.name}; allowed: {allowed}")
    if any(side % token_side or not token_side <= side <= MAX_SIDE for side in spec.size):
        raise InvalidParams(
            "size",
            f"size {size} is not possible; sides are multiples of {token_side}, at most {MAX_SIDE}",
        )
    if not MIN_STEPS <= spec.num_steps <= MAX_STEPS:
        raise InvalidParams(
            "steps", f"steps must be between {MIN_STEPS} and {MAX_STEPS}, got {spec.num_steps}"
        )
    if not MIN_GUIDANCE_SCALE <= spec.guidance_scale <= MAX_GUIDANCE_SCALE:
        raise InvalidParams(
            "guidance_scale",
            f"guidance scale must be between {MIN_GUIDANCE_SCALE:g} and {MAX_GUIDANCE_SCALE:g}, "
            f"got {spec.guidance_scale:g}",
        )
