"""The noise schedule that a checkpoint's files declare.

Imports no torch, because the gateway lists the solvers that a model can be served with.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.pipeline.diffusion.prediction import PREDICTIONS
from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS, Flow, Schedule, VariancePreserving

# diffusers' names of the supported beta schedules, with their names here and the betas that they must have
BETAS: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": ("cosine", {}),
}

# options that would change the schedule, with the value that does not
NEUTRAL_OPTIONS = {
    "num_train_timesteps": NUM_TRAIN_STEPS,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_dynamic_shifting": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "thresholding": False,
    "clip_sample": False,
}
FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"
# the supported scheduler classes; only the noise schedule is read, which they share
CLASSES = (
    FLOW_CLASS,
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)
FLOW_PREDICTION = "flow_prediction"  # diffusers' name of the prediction type "flow"
MAX_SHIFT = 1000.0  # beyond it a grid's times are no longer distinct in float32


def read_schedule(folder: Path) -> tuple[Schedule, str]:
    """Noise schedule and prediction type of the checkpoint in `folder`, from its `scheduler_config.json`.

    The solver and the spacing are not read: the family has defaults, and each request may choose. Raises
    `CheckpointError` for a schedule that is not supported.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    name = _one_of(CLASSES, config.get("_class_name"), "class", path)
    _require(config, NEUTRAL_OPTIONS, path)
    if name == FLOW_CLASS or config.get("use_flow_sigmas") is True:
        if name != FLOW_CLASS:
            _one_of((FLOW_PREDICTION,), config.get("prediction_type"), "prediction_type", path)
        return _read_flow(config, path), "flow"
    _require(config, {"use_flow_sigmas": False}, path)
    prediction = _one_of(PREDICTIONS, config.get("prediction_type", "epsilon"), "prediction_type", path)
    kind, betas = BETAS[_one_of(BETAS, config.get("beta_schedule", "linear"), "beta_schedule", path)]
    _require(config, betas, path)
    return VariancePreserving(kind), prediction


def _one_of(supported: Iterable[str], value: object, option: str, path: Path) -> str:
    if not isinstance(value, str) or value not in supported:
        raise CheckpointError(
            f"{path}: {option} {value!r} is not supported; supported: {', '.join(supported)}"
        )
    return value


def _read_flow(config: dict[str, Any], path: Path) -> Flow:
    key = "flow_shift" if "flow_shift" in config else "shift"
    shift = config.get(key, 1.0)
    if type(shift) not in (int, float) or not 1 / MAX_SHIFT <= shift <= MAX_SHIFT:
        raise CheckpointError(
            f"{path}: {key} is {shift!r}, expected a number from {1 / MAX_SHIFT:g} to {MAX_SHIFT:g}"
        )
    return Flow(shift)


def _require(config: dict[str, Any], options: Mapping[str, object], path: Path) -> None:
    for key, value in options.items():
        if config.get(key, value) != value and (config[key] or value):  # null means false
            raise CheckpointError(f"{path}: {key} {config[key]!r} is not supported, only {value!r}")
