"""Which files hold the weights of a part: one file or shards with an index, in the variant that is chosen.

No torch is imported here, and no weight is read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.missing_files import describe_missing, is_there
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions

WEIGHTS = "diffusion_pytorch_model.safetensors"
HF_WEIGHTS = "model.safetensors"
CLIP_WEIGHTS = "open_clip_model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# By dtype, without "torch.": the variant that is read if there is no file without one.
DTYPE_VARIANTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files to read, each with the names that an index lists for it (none without an index)."""

    variant: str  # empty: without a variant
    files: Mapping[Path, list[str]]


def find_weight_files(
    folder: Path, weights: str, options: ReadOptions = DEFAULT_READ_OPTIONS, dtype: str = ""
) -> WeightFiles:
    """The weight files of the part in `folder`.

    Args:
        folder: the part.
        weights: the name of the weight file without a variant.
        options: the variant that is asked for. A part without it is read as if none was.
        dtype: what the weights are converted to, such as "bfloat16".

    Raises:
        CheckpointError: there are no weights, or several variants and no way to choose.
    """
    places = _find_places(folder, weights)
    if not places:
        raise CheckpointError(_describe_absence(folder, weights))
    variant = _choose(places, options.variant, dtype)
    if variant is None:
        listed = sorted(places)
        raise CheckpointError(
            f"{folder / weights} is missing, and which of the variants {', '.join(listed)} to read is not "
            f"said: choose one with --variant {' or --variant '.join(listed)} (setting variant)"
        )
    place = places[variant]
    return WeightFiles(variant, _read_index(place) if place.suffix == ".json" else {place: []})


def list_variants(folders: Iterable[Path]) -> list[str]:
    """The variants of the weights in any of `folders`, each a part."""
    names = {
        variant
        for folder in folders
        for weights in (WEIGHTS, HF_WEIGHTS, CLIP_WEIGHTS)
        for variant in _find_places(folder, weights)
    }
    return sorted(names - {""})


def _choose(places: Mapping[str, Path], variant: str, dtype: str) -> str | None:
    """The variant to read, or None if the choice is open."""
    for choice in (variant, "", DTYPE_VARIANTS.get(dtype, "")):
        if choice in places:
            return choice
    return next(iter(places)) if len(places) == 1 else None


def _find_places(folder: Path, weights: str) -> dict[str, Path]:
    """The file or the index of every variant; the key of the one without a variant is empty."""
    stem, suffix = map(re.escape, weights.rsplit(".", 1))
    # The second spelling of an index is that of older releases of diffusers.
    patterns = (
        rf"{stem}\.([^.]+)\.{suffix}",
        rf"{stem}\.{suffix}\.index\.([^.]+)\.json",
        rf"{stem}\.([^.]+)\.{suffix}\.index\.json",
    )
    files = sorted(folder.glob("*"))
    places = {
        match[1]: file
        for pattern in reversed(patterns)  # a single file comes first
        for file in files
        if (match := re.fullmatch(pattern, file.name)) and not re.search(r"-\d+-of-\d+$", match[1])
    }
    for plain in (folder / f"{weights}.index.json", folder / weights):
        if is_there(plain):
            places[""] = plain
    return places


def _describe_absence(folder: Path, weights: str) -> str:
    if pickles := sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES):
        return f"{folder / pickles[0]} is a pickle, which is never loaded; convert it to {weights}"
    return f"{folder / weights} {describe_missing(folder / weights)}"


def _read_index(index: Path) -> dict[Path, list[str]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map")
    files: dict[Path, list[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, which is not a safetensors file beside it")
        files.setdefault(index.parent / name, []).append(tensor)
    for file in sorted(files):
        if not file.exists():
            reason = "is missing, although the index names it"
            if (why := describe_missing(file)) != "is missing":
                reason = f"{why}; the index names it"
            raise CheckpointError(f"{file} {reason}")
    return files
