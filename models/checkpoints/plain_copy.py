"""`python -m safelight.models.checkpoints.plain_copy FOLDER TARGET`: copy a checkpoint for other libraries.

Matrices stored in int8 become float32, which diffusers reads, and which holds them exactly.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.models.checkpoints.int8_rows import ROW_SCALE, restore_rows


def write_plain_copy(folder: Path, target: Path) -> None:
    """Copy the files in `folder` to `target`, with every matrix in floating point."""
    for file in (file for file in folder.rglob("*") if file.is_file()):
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            save_file(restore_matrices(load_file(file)), copy, metadata={"format": "pt"})
        else:
            shutil.copyfile(file, copy)


def restore_matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with every matrix that has row scales in float32, and without these scales."""
    return {
        name: restore_rows(tensor, tensors[name + ROW_SCALE]) if name + ROW_SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(ROW_SCALE)
    }


def main() -> None:
    """Copy the folder that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m safelight.models.checkpoints.plain_copy",
        description="Copy a checkpoint with its int8 matrices in float32, which other libraries read.",
    )
    parser.add_argument("folder", type=Path, help="a checkpoint folder, or one of its parts")
    parser.add_argument("target", type=Path, help="where to write; files of the same names are replaced")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    write_plain_copy(args.folder, args.target)


if __name__ == "__main__":
    main()
