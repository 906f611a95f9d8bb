"""What `model_index.json` says about the parts of a checkpoint. No torch is imported here."""

from pathlib import Path

from safelight.models.checkpoints.json_files import read_json

INDEX = "model_index.json"


def read_part_class(folder: Path, part: str) -> str | None:
    """The class that `model_index.json` names for `part`; None for one that is left out (`[null, null]`)."""
    entry = read_json(folder / INDEX).get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def is_left_out(folder: Path, part: str) -> bool:
    """Whether `model_index.json` has null or nothing for `part`: diffusers then does without it."""
    return _is_null(read_json(folder / INDEX).get(part))


def is_null(folder: Path, part: str) -> bool:
    """Whether `model_index.json` has null for `part`, not merely nothing."""
    index = read_json(folder / INDEX)
    return part in index and _is_null(index[part])


def _is_null(entry: object) -> bool:
    """Whether an entry of library and class lacks one of them."""
    return not isinstance(entry, list) or len(entry) != 2 or None in entry
