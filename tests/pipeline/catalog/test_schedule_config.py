"""The schedule that a checkpoint's `scheduler_config.json` declares, and those that are refused."""

import json
from pathlib import Path

import pytest

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving

COSINE = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
LINEAR = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SCALED = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SIGMAS = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}


def read(folder: Path, config: dict[str, object]) -> tuple[Schedule, str]:
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return read_schedule(folder)


@pytest.mark.parametrize(
    ("config", "schedule", "prediction"),
    [
        (LINEAR, VariancePreserving("linear"), "epsilon"),
        ({"_class_name": "DDIMScheduler"}, VariancePreserving("linear"), "epsilon"),
        (SCALED | {"prediction_type": "v_prediction"}, VariancePreserving("scaled_linear"), "v_prediction"),
        (
            {
                "_class_name": "DDPMScheduler",
                "beta_schedule": "squaredcos_cap_v2",
                "prediction_type": "sample",
            },
            VariancePreserving("cosine"),
            "sample",
        ),
        (FLOW, Flow(1.0), "flow"),
        (FLOW | {"shift": 3.0, "prediction_type": "epsilon"}, Flow(3.0), "flow"),  # which it does not read
        (SIGMAS | {"prediction_type": "flow_prediction", "flow_shift": 2}, Flow(2), "flow"),
    ],
)
def test_a_declared_schedule_is_read(
    tmp_path: Path, config: dict[str, object], schedule: Schedule, prediction: str
) -> None:
    assert read(tmp_path, config) == (schedule, prediction)


@pytest.mark.parametrize(
    "kind",
    [
        *("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete"),
        *("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"),
    ],
)
def test_the_supported_classes_share_the_schedule(tmp_path: Path, kind: str) -> None:
    config = LINEAR | {"_class_name": f"{kind}Scheduler"}
    assert read(tmp_path, config) == (VariancePreserving("linear"), "epsilon")


@pytest.mark.parametrize(
    ("option", "harmful", "neutral"),
    [
        ("num_train_timesteps", 500, 1000),
        ("trained_betas", [0.1, 0.2], None),
        ("shift_terminal", 0.1, None),
        *(
            (option, True, False)
            for option in (
                *("rescale_betas_zero_snr", "invert_sigmas", "use_dynamic_shifting", "use_karras_sigmas"),
                *("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "thresholding"),
                "clip_sample",
            )
        ),
    ],
)
def test_an_option_that_would_change_the_schedule_is_refused(
    tmp_path: Path, option: str, harmful: object, neutral: object
) -> None:
    with pytest.raises(CheckpointError, match=option):
        read(tmp_path, LINEAR | {option: harmful})
    for value in (neutral, neutral or None):  # null means false
        assert read(tmp_path, LINEAR | {option: value})[0] == VariancePreserving("linear")


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "class None is not supported"),
        ({"_class_name": "EDMEulerScheduler"}, "class 'EDMEulerScheduler' is not supported"),
        (LINEAR | {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not supported"),
        (LINEAR | {"beta_end": 0.012}, "beta_end 0.012 is not supported, only 0.02"),
        (SCALED | {"beta_start": 1e-4}, "beta_start 0.0001 is not supported, only 0.00085"),
        (LINEAR | {"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction'"),
        (SIGMAS, "prediction_type None is not supported; supported: flow_prediction"),
        (SIGMAS | {"prediction_type": "epsilon"}, "prediction_type 'epsilon' is not supported"),
        (FLOW | {"use_dynamic_shifting": True}, "use_dynamic_shifting True is not supported"),
        (FLOW | {"shift": 0}, "shift is 0, expected a number from 0.001 to 1000"),
        (FLOW | {"shift": 1001}, "shift is 1001"),
        (FLOW | {"shift": True}, "shift is True"),
        (FLOW | {"flow_shift": "3", "shift": 3.0}, "flow_shift is '3'"),
    ],
)
def test_an_unsupported_schedule_is_named(tmp_path: Path, config: dict[str, object], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read(tmp_path, config)
