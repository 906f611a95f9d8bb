"""Stage `start`: begin from exported weights instead of from nothing.

Writes the parts of a checkpoint folder into the recipe's folder as float32, as the training stages leave
them: the two CLIPs, the autoencoder, and the DiT as step 0 of `dit.ckpt`, whose optimisers start afresh.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from safelight.models.checkpoints.tensors import WEIGHTS, list_tensors, read_stored
from safelight.models.checkpoints.writer import write_clip
from safelight.models.recipes.emoji import dit, text
from safelight.models.recipes.emoji.training import WeightAverage
from safelight.models.text.open_clip_folder import load_clip


def run(work: Path, weights: Path) -> None:
    """Copy the parts of the folder `weights` into `work`; parts that are already there are kept."""
    work.mkdir(parents=True, exist_ok=True)
    for spec in (text.CONDITIONING, text.SCORER):
        if not (work / spec.folder).exists():
            clip = load_clip(weights / spec.folder).state_dict()
            write_clip(work / spec.folder, text.EMBED_DIM, spec.vision, text.TEXT, clip)
    _copy(weights / "vae", work / "vae")
    checkpoint = work / "dit.ckpt"
    if not checkpoint.exists():
        model = dit.ConditionedDiT(dit.build())
        model.dit.load_state_dict(_float32(weights / "transformer"))
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


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.mkdir()
    shutil.copy(source / "config.json", target)
    save_file(_float32(source), target / WEIGHTS, metadata={"format": "pt"})


def _float32(folder: Path) -> dict[str, Tensor]:
    return read_stored(list_tensors(folder), "cpu", torch.float32)
