"""Writing checkpoint folders: diffusers' layout, and open_clip's for the text tower."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from safelight.models.checkpoints.compact_embedding import NUM_ROWS, ROWS
from safelight.models.checkpoints.json_files import CLIP_CONFIG
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, WEIGHTS

FLOW_SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 1.0,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "final_sigmas_type": "zero",
}


def write_part(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write a network in diffusers' layout: `config.json` and safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_weights(folder, state)


def write_weights(folder: Path, state: dict[str, Tensor], variant: str = "") -> None:
    """Write the weights of a network in diffusers' layout, under the name of a variant if it is one."""
    stem, suffix = WEIGHTS.rsplit(".", 1)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / (f"{stem}.{variant}.{suffix}" if variant else WEIGHTS),
        metadata={"format": "pt"},
    )


def write_clip(
    folder: Path, embed_dim: int, vision: dict[str, Any], text: dict[str, Any], state: dict[str, Tensor]
) -> None:
    """Write a CLIP in open_clip's local-dir layout: a configuration and safetensors.

    Args:
        folder: where to write; it is created if it is missing.
        embed_dim: channels of the space that images and texts share.
        vision: open_clip's `vision_cfg`.
        text: open_clip's `text_cfg`.
        state: the state dict of both towers; of the token embeddings possibly the trained rows only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "model_cfg": {"embed_dim": embed_dim, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    }
    if ROWS in state:
        config[NUM_ROWS] = len(state[ROWS])
    (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / CLIP_WEIGHTS)


def write_index(folder: Path, scheduler: dict[str, Any]) -> None:
    """Write `model_index.json` of a `PixArtSigmaPipeline`, and the options of its `scheduler`.

    diffusers cannot load the open_clip text tower, so the text parts are null in the index.
    Call this last: a folder with a `model_index.json` is complete.
    """
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "_diffusers_version": "0.35.0",
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
