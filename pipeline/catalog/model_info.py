"""The limits and defaults of a served model, and the check of a request against them. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.text.label import Labels
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import GenerationParams

MAX_PROMPT_CHARACTERS = 32_000
MIN_STEPS, MAX_STEPS = 1, 200
MIN_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE = 0.0, 20.0
NO_GUIDANCE = 1.0  # the scale at which only the prompt is evaluated
MAX_GUIDANCE_STRIDE = 10
MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exact


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The limits and defaults of a served model."""

    id: str  # the name under which it is served
    path: Path
    family: str
    licence: str
    sizes: tuple[tuple[int, int], ...]  # (width, height) in pixels, the native size first
    num_steps: int  # this and the next two: defaults of a request, of the family or the operator
    guidance_scale: float
    solver: str
    solvers: tuple[str, ...]
    timestep_spacing: str  # the default
    spacings: tuple[str, ...]
    schedule: Schedule
    prediction: str  # a key of `safelight.pipeline.diffusion.prediction.PREDICTIONS`
    labels: Labels | None = None  # the classes that a prompt may name, of a class-conditional model
    # Of a request; None: the native size. The engine's limits and measurements stay those of the native size.
    request_size: tuple[int, int] | None = None
    checkpoint_id: str = ""  # its id by its folder, if that is not `id`
    read_options: ReadOptions = DEFAULT_READ_OPTIONS
    has_edits: bool = True  # whether its autoencoder encodes images to the size that it decodes
    max_steps: int = MAX_STEPS  # of a request; a few-step student knows the steps that it learned
    has_distilled_guidance: bool = False  # whether guidance is in the weights, so that no scale has an effect

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a request may ask for it, `id` first."""
        return (self.id, self.checkpoint_id) if self.checkpoint_id else (self.id,)

    @property
    def guidance_range(self) -> tuple[float, float]:
        """The smallest and the largest guidance scale of a request."""
        if self.has_distilled_guidance:
            return NO_GUIDANCE, NO_GUIDANCE
        return MIN_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE

    @property
    def default_size(self) -> tuple[int, int]:
        return self.request_size or self.native_size

    @property
    def native_size(self) -> tuple[int, int]:
        return self.sizes[0]


def applied_guidance_scale(scale: float) -> float:
    """The scale that a request for `scale` gets: at least 1, which is off.

    diffusers guides above 1 only, and the cards of few-step checkpoints ask for 0 and mean no guidance. By
    the formula, a scale of 0 would ignore the prompt. A scale that is out of range stays, to be refused.
    """
    return NO_GUIDANCE if MIN_GUIDANCE_SCALE <= scale < NO_GUIDANCE else scale


def check_params(params: GenerationParams, model: ModelInfo) -> None:
    """Raise `InvalidParams` naming the first field of `params` that `model` cannot serve."""
    _check_texts(params, model)
    if (params.width, params.height) not in model.sizes:
        size, allowed = f"{params.width}x{params.height}", ", ".join(f"{w}x{h}" for w, h in model.sizes)
        raise InvalidParams("size", f"size {size} is not served by {model.id}; allowed: {allowed}, or auto")
    _check_range("num_steps", params.num_steps, MIN_STEPS, model.max_steps)
    _check_range("guidance_scale", params.guidance_scale, MIN_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE)
    if model.has_distilled_guidance and params.guidance_scale != NO_GUIDANCE:
        raise InvalidParams(
            "guidance_scale",
            f"guidance_scale has no effect in {model.id}, which learned its guidance; leave it out, or say 1",
        )
    _check_solver(params, model)
    _check_eta(params)
    start, end = params.guidance_interval
    if not 0.0 <= start <= end <= 1.0:
        raise InvalidParams(
            "guidance_interval",
            f"guidance_interval must be two times, 0 <= start <= end <= 1, got [{start:g}, {end:g}]",
        )
    _check_range("guidance_stride", params.guidance_stride, 1, MAX_GUIDANCE_STRIDE)
    _check_range("guidance_rescale", params.guidance_rescale, 0.0, 1.0)
    _check_range("seed", params.seed, 0, MAX_SEED)
    if params.edit is not None:
        _check_range("strength", params.edit.strength, 0.0, 1.0)


def _check_texts(params: GenerationParams, model: ModelInfo) -> None:
    if not params.prompt.strip():
        raise InvalidParams("prompt", "prompt must not be empty")
    for name, text in (("prompt", params.prompt), ("negative_prompt", params.negative_prompt)):
        if len(text) > MAX_PROMPT_CHARACTERS:
            raise InvalidParams(
                name, f"{name} has {len(text)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
            )
        _check_label(name, text, model)


def _check_label(name: str, text: str, model: ModelInfo) -> None:
    if model.labels is None:
        return
    try:
        model.labels.find(text)
    except ValueError as error:  # safelight.models.text.reading.UnreadableText, whose module imports torch
        raise InvalidParams(name, f"{name} {error}") from None


def _check_solver(params: GenerationParams, model: ModelInfo) -> None:
    if params.solver not in model.solvers:
        allowed = ", ".join(model.solvers)
        raise InvalidParams(
            "solver", f"solver {params.solver!r} is not served by {model.id}; allowed: {allowed}"
        )
    if params.timestep_spacing not in model.spacings:
        allowed = ", ".join(model.spacings)
        raise InvalidParams(
            "timestep_spacing", f"timestep_spacing {params.timestep_spacing!r} is unknown; allowed: {allowed}"
        )


def _check_eta(params: GenerationParams) -> None:
    if params.eta != 0.0 and params.solver != "ddim":
        raise InvalidParams("eta", f"eta has a meaning for ddim only, not for {params.solver}")
    _check_range("eta", params.eta, 0.0, 1.0)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `InvalidParams` unless low <= `value` <= high."""
    if not low <= value <= high:  # also for NaN
        spec = "" if isinstance(low, int) else "g"
        raise InvalidParams(
            name, f"{name} must be between {low:{spec}} and {high:{spec}}, got {value:{spec}}"
        )
