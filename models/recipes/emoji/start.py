"""Stage `start`: begin from exported weights instead of from nothing.

Writes the parts of a checkpoint folder into the recipe's folder as float32, as the training stages leave
them: the two CLIPs, the autoencoder, and the DiT as step 0 of `dit.ckpt`, whose optimisers start afresh.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.models.checkpoints.json_files import CLIP_CONFIG
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, WEIGHTS
from safelight.models.recipes.emoji import dit, text
from safelight.models.recipes.emoji.training import WeightAverage


def run(work: Path, weights: Path) -> None:
    """Copy the parts of the folder `weights` into `work`; parts that are already there are kept."""
    work.mkdir(parents=True, exist_ok=True)
    for spec in (text.CONDITIONING, text.SCORER):
        _copy(weights / spec.folder, work / spec.folder, CLIP_WEIGHTS, CLIP_CONFIG)
    _copy(weights / "vae", work / "vae", WEIGHTS, "config.json")
    checkpoint = work / "dit.ckpt"
    if not checkpoint.exists():
        model = dit.ConditionedDiT(dit.build())
        model.dit.load_state_dict(_float32(load_file(weights / "transformer" / WEIGHTS)))
        torch.save(
            {
                "step": 0,
                "module": model.state_dict(),
                "average": WeightAverage(model, 0.0).shadow,
                "optimisers": [],
            },
            checkpoint,
        )
    print(f"start: the parts of {weights} are in {work}")


def _copy(source: Path, target: Path, weights: str, config: str) -> None:
    if target.exists():
        return
    target.mkdir()
    shutil.copy(source / config, target)
    save_file(_float32(load_file(source / weights)), target / weights, metadata={"format": "pt"})


def _float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
