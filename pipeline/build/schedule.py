"""What a checkpoint's files say about noise. No torch here: the gateway asks which solvers a model can be served with."""

from pathlib import Path

from models.folder import CheckpointError, read_json
from pipeline.prediction import PREDICTIONS
from pipeline.schedules import Flow, Schedule, VariancePreserving

# diffusers' names of the schedules that we have, with the betas that they must start and end at
BETAS: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": ("cosine", {}),
}


def read_schedule(folder: Path) -> tuple[Schedule, str]:
    """Noise schedule and prediction type of a checkpoint, from its `scheduler_config.json`."""
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    prediction = config.get("prediction_type", "epsilon")
    if config.get("use_dynamic_shifting"):
        raise CheckpointError(f"{folder}: use_dynamic_shifting is not supported yet; give the shift of the served size as shift")
    if config.get("use_flow_sigmas") or config.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        return Flow(config.get("flow_shift", config.get("shift", 1.0))), "flow"
    if prediction not in PREDICTIONS:
        raise CheckpointError(f"{folder}: prediction_type {prediction!r} is not supported; supported: {', '.join(PREDICTIONS)}")
    kind = config.get("beta_schedule", "linear")
    if kind not in BETAS:
        raise CheckpointError(f"{folder}: beta_schedule {kind!r} is not supported; supported: {', '.join(BETAS)}")
    name, ends = BETAS[kind]
    wanted = {"num_train_timesteps": 1000, "trained_betas": None, "rescale_betas_zero_snr": False, **ends}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{folder}: {key} {config[key]!r} is not supported, only {value!r}")
    return VariancePreserving(name), prediction
