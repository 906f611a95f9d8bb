"""What a checkpoint's files say about noise. No torch here: the gateway asks which solvers a model can be served with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.folder import CheckpointError, read_json
from pipeline.params import InvalidParams
from pipeline.prediction import PREDICTIONS
from pipeline.schedules import NUM_TRAIN_STEPS, Flow, Schedule, VariancePreserving

# diffusers' names of the schedules that we have, with the betas that they must start and end at
BETAS: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": ("cosine", {}),
}


# options that would make it another schedule, with the value that leaves it as it is
PLAIN = {
    "num_train_timesteps": NUM_TRAIN_STEPS, "trained_betas": None, "rescale_betas_zero_snr": False, "invert_sigmas": False,
    "shift_terminal": None, "use_dynamic_shifting": False, "use_karras_sigmas": False, "use_exponential_sigmas": False,
    "use_beta_sigmas": False, "use_lu_lambdas": False,
}  # fmt: skip
FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"


def read_schedule(folder: Path) -> tuple[Schedule, str]:
    """Noise schedule and prediction type of the checkpoint in `folder`, from its `scheduler_config.json`.

    Which solver takes the steps, and where they stand, its family says and each request may.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    _require(config, PLAIN, path)
    if config.get("use_flow_sigmas") or config.get("_class_name") == FLOW_CLASS:
        return _read_flow(config, path), "flow"
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise CheckpointError(f"{path}: prediction_type {prediction!r} is not supported; supported: {', '.join(PREDICTIONS)}")
    kind = config.get("beta_schedule", "linear")
    if kind not in BETAS:
        raise CheckpointError(f"{path}: beta_schedule {kind!r} is not supported; supported: {', '.join(BETAS)}")
    name, ends = BETAS[kind]
    _require(config, ends, path)
    return VariancePreserving(name), prediction


def _read_flow(config: dict[str, Any], path: Path) -> Flow:
    key = "flow_shift" if "flow_shift" in config else "shift"
    shift = config.get(key, 1.0)
    try:
        return Flow(shift)
    except (InvalidParams, TypeError):
        raise CheckpointError(f"{path}: {key} is {shift!r}, expected a positive number") from None


def _require(config: dict[str, Any], plain: Mapping[str, object], path: Path) -> None:
    for key, value in plain.items():
        if config.get(key, value) != value and (config[key] or value):  # null and false are the same here
            raise CheckpointError(f"{path}: {key} {config[key]!r} is not supported, only {value!r}")
