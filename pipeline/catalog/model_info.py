"""What a caller may ask of a model, its defaults, and the check of a request against them. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from safelight.models.text.label import Labels
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import GenerationParams

MAX_PROMPT_CHARACTERS = 4000
MIN_STEPS, MAX_STEPS = 1, 200
MIN_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE = 0.0, 20.0
MAX_GUIDANCE_STRIDE = 10
MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exact


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a caller may ask of a model, and what it gets when it does not ask."""

    id: str
    path: Path
    family: str
    licence: str
    sizes: tuple[tuple[int, int], ...]  # (width, height) in pixels, the native size first
    num_steps: int
    guidance_scale: float
    solver: str
    solvers: tuple[str, ...]
    timestep_spacing: str
    spacings: tuple[str, ...]
    schedule: Schedule
    prediction: str  # of `safelight.pipeline.diffusion.prediction`
    labels: Labels | None = None  # where a prompt is a class, what may be asked for

    @property
    def native_size(self) -> tuple[int, int]:
        return self.sizes[0]


def check_params(params: GenerationParams, model: ModelInfo) -> None:
    """Raise `InvalidParams` naming the first field of `params` that `model` cannot serve."""
    if not params.prompt.strip():
        raise InvalidParams("prompt", "prompt must not be empty")
    for name, text in (("prompt", params.prompt), ("negative_prompt", params.negative_prompt)):
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise InvalidParams(
                name, f"{name} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
            )
        _check_label(name, text, model)
    if (params.width, params.height) not in model.sizes:
        allowed = ", ".join(f"{w}x{h}" for w, h in model.sizes)
        raise InvalidParams(
            "size",
            f"size {params.width}x{params.height} is not served by {model.id}; allowed: {allowed}, or auto",
        )
    if not MIN_STEPS <= params.num_steps <= MAX_STEPS:
        raise InvalidParams(
            "num_inference_steps",
            f"num_inference_steps must be between {MIN_STEPS} and {MAX_STEPS}, got {params.num_steps}",
        )
    if not MIN_GUIDANCE_SCALE <= params.guidance_scale <= MAX_GUIDANCE_SCALE:
        raise InvalidParams(
            "guidance_scale",
            f"guidance_scale must be between {MIN_GUIDANCE_SCALE:g} and {MAX_GUIDANCE_SCALE:g}, got {params.guidance_scale:g}",
        )
    if params.solver not in model.solvers:
        raise InvalidParams(
            "solver",
            f"solver {params.solver!r} is not served by {model.id}; allowed: {', '.join(model.solvers)}",
        )
    if params.timestep_spacing not in model.spacings:
        allowed = ", ".join(model.spacings)
        raise InvalidParams(
            "timestep_spacing", f"timestep_spacing {params.timestep_spacing!r} is unknown; allowed: {allowed}"
        )
    if params.eta != 0.0 and params.solver != "ddim":
        raise InvalidParams("eta", f"eta has a meaning for ddim only, not for {params.solver}")
    if not 0.0 <= params.eta <= 1.0:
        raise InvalidParams("eta", f"eta must be between 0 and 1, got {params.eta:g}")
    start, end = params.guidance_interval
    if not 0.0 <= start <= end <= 1.0:
        raise InvalidParams(
            "guidance_interval",
            f"guidance_interval must be two times, 0 <= start <= end <= 1, got [{start:g}, {end:g}]",
        )
    if not 1 <= params.guidance_stride <= MAX_GUIDANCE_STRIDE:
        raise InvalidParams(
            "guidance_stride",
            f"guidance_stride must be between 1 and {MAX_GUIDANCE_STRIDE}, got {params.guidance_stride}",
        )
    if not 0.0 <= params.guidance_rescale <= 1.0:
        raise InvalidParams(
            "guidance_rescale", f"guidance_rescale must be between 0 and 1, got {params.guidance_rescale:g}"
        )
    if not 0 <= params.seed <= MAX_SEED:
        raise InvalidParams("seed", f"seed must be between 0 and {MAX_SEED}, got {params.seed}")


def _check_label(name: str, text: str, model: ModelInfo) -> None:
    if model.labels is None:
        return
    try:
        model.labels.find(text)
    except ValueError as error:  # safelight.models.text.reading.UnreadableText, whose module imports torch
        raise InvalidParams(name, f"{name} {error}") from None
