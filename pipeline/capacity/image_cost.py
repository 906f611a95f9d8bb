"""What an image asks of each stage in floating-point operations, on the outline of a model. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from safelight.models.families.image_sizes import MAX_SIDE
from safelight.pipeline.catalog.model_info import MAX_GUIDANCE_SCALE, MAX_STEPS, MIN_GUIDANCE_SCALE, MIN_STEPS
from safelight.pipeline.diffusion.guidance import needs_cond, needs_uncond
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.solvers import plan
from safelight.pipeline.errors import InvalidParams

Size = tuple[int, int]  # width, height, in pixels


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model as work and defaults. Latents are (rows, columns); a text is the prompt or the negative prompt, at full length."""

    name: str
    native_size: Size
    num_steps: int
    guidance_scale: float
    solver: str
    timestep_spacing: str
    schedule: Schedule
    prediction: str
    text: int  # operations of all towers on a text
    evaluation: Callable[[int, int], int]  # of a row in a tick, by its latents
    once: Callable[[int, int], int]  # of an image, by the times of its plan and its number of texts
    decode: Callable[[int, int], int]  # of an image, by its latents
    scale: int = 8  # pixels on a side of a latent pixel
    patch: int = 2  # latent pixels on a side of a token
    sizes: tuple[Size, ...] = ()  # that alone are served; none where any of whole patches will do


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image as it is asked for."""

    size: Size
    num_steps: int
    guidance_scale: float
    solver: str


@dataclass(frozen=True, slots=True)
class ImageCost:
    """Operations of one image: of its texts, once before its ticks, of each tick, and of decoding; `rows` and `tokens` of a tick."""

    encode: float
    once: float
    ticks: tuple[float, ...]
    decode: float
    rows: int
    tokens: int

    @property
    def denoise(self) -> float:
        return self.once + sum(self.ticks)

    @property
    def total(self) -> float:
        return self.encode + self.denoise + self.decode


def image_cost(outline: ModelProfile, order: ImageSpec) -> ImageCost:
    """What one image takes alone, no text remembered. Raises `InvalidParams` for what the model cannot draw."""
    _check(outline, order)
    width, height = (side // outline.scale for side in order.size)
    made = plan(
        order.solver, outline.schedule, outline.prediction, order.num_steps, spacing=outline.timestep_spacing
    )
    rows = needs_cond(order.guidance_scale) + needs_uncond(order.guidance_scale)
    return ImageCost(
        encode=rows * outline.text,
        once=outline.once(made.nfe, rows),
        ticks=(rows * outline.evaluation(height, width),) * made.nfe,
        decode=outline.decode(height, width),
        rows=rows,
        tokens=(height // outline.patch) * (width // outline.patch),
    )


def _check(outline: ModelProfile, order: ImageSpec) -> None:
    size = f"{order.size[0]}x{order.size[1]}"
    side = outline.scale * outline.patch
    if outline.sizes and order.size not in outline.sizes:
        allowed = ", ".join(f"{w}x{h}" for w, h in outline.sizes)
        raise InvalidParams("size", f"size {size} is not served by {outline.name}; allowed: {allowed}")
    if any(length % side or not side <= length <= MAX_SIDE for length in order.size):
        raise InvalidParams(
            "size", f"size {size} is not possible; sides are multiples of {side}, at most {MAX_SIDE}"
        )
    if not MIN_STEPS <= order.num_steps <= MAX_STEPS:
        raise InvalidParams(
            "steps", f"steps must be between {MIN_STEPS} and {MAX_STEPS}, got {order.num_steps}"
        )
    if not MIN_GUIDANCE_SCALE <= order.guidance_scale <= MAX_GUIDANCE_SCALE:
        raise InvalidParams(
            "guidance_scale",
            f"guidance scale must be between {MIN_GUIDANCE_SCALE:g} and {MAX_GUIDANCE_SCALE:g}, got {order.guidance_scale:g}",
        )
