"""What `model_index.json` says about the parts of a checkpoint. No torch is imported here."""

from pathlib import Path

from safelight.models.checkpoints.json_files import read_json

INDEX = "model_index.json"


def read_part_class(folder: Path, part: str) -> str | None:
    """The class that `model_index.json` names for `part`; None for one that is left out (`[null, null]`)."""
    entry = read_json(folder / INDEX).get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def has_optional_part(folder: Path, part: str, tokenizer: str | None) -> bool:
    """Whether the checkpoint in `folder` has an optional `part`, which may have a `tokenizer`.

    As in diffusers, null or nothing for either in `model_index.json` means without, even if the part's folder
    is there.
    """
    if not (folder / part).is_dir():
        return False
    index = read_json(folder / INDEX)
    return not any(_is_null(index.get(entry)) for entry in (part, tokenizer) if entry is not None)


def is_null(folder: Path, part: str) -> bool:
    """Whether `model_index.json` has null for `part`, not merely nothing."""
    index = read_json(folder / INDEX)
    return part in index and _is_null(index[part])


def _is_null(entry: object) -> bool:
    """Whether an entry of library and class lacks one of them."""
    return not isinstance(entry, list) or len(entry) != 2 or None in entry
