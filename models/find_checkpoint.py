"""Checkpoints by name or folder: the embedded models, the `tiny` preset, and any folder on disk.

No torch is imported here, except to write `tiny`.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.families.image_sizes import Size, list_sizes
from safelight.models.families.registry import recognise
from safelight.models.families.spec import Family

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
TINY = "tiny"  # random weights from a fixed seed, for tests


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """The facts about an embedded model that its folder does not state."""

    licence: str
    more_sizes: tuple[Size, ...] = ()  # served beside the native square


EMBEDDED = {
    "emoji-128": EmbeddedModel(
        licence="weights: Apache-2.0; trained on Fluent Emoji (MIT) and Noto Emoji (Apache-2.0)",
        more_sizes=(),
    ),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder that can be served."""

    id: str
    folder: Path
    family: Family
    sizes: tuple[Size, ...]  # that are served, the native one first
    licence: str


def find_checkpoint(name_or_dir: str) -> Checkpoint:
    """The checkpoint of an embedded model's name, of `tiny`, or of a folder.

    Raises `CheckpointError` if there is none, or if no family matches the folder.
    """
    folder = find_folder(name_or_dir)
    family = recognise(folder)
    embedded = EMBEDDED.get(name_or_dir) or EmbeddedModel(
        "none: random weights" if name_or_dir == TINY else "see the folder"
    )
    model_id = name_or_dir if name_or_dir in (*EMBEDDED, TINY) else folder.name
    sizes = (*list_sizes(family, folder), *embedded.more_sizes)
    return Checkpoint(model_id, folder, family, sizes, embedded.licence)


def find_folder(name_or_dir: str) -> Path:
    """The folder of a model, whatever it holds.

    Raises `CheckpointError` if `name_or_dir` is neither a known name nor a folder.
    """
    if name_or_dir == TINY:
        return ensure_tiny()
    if name_or_dir in EMBEDDED:
        return WEIGHTS_FOLDER / name_or_dir
    folder = Path(name_or_dir).expanduser()
    if folder.is_file():
        raise CheckpointError(
            f"model {name_or_dir!r} is a file, a checkpoint is a folder with a model_index.json"
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"model {name_or_dir!r} is neither a folder nor one of {', '.join((*EMBEDDED, TINY))}"
        )
    return folder.resolve()


def ensure_tiny() -> Path:
    """The folder of the `tiny` preset, written if it is missing. Several processes may call this at once."""
    folder = tiny_folder()
    if not (folder / "model_index.json").exists():
        from safelight.models.tiny import write_tiny  # imports torch and open_clip

        partial = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
        write_tiny(partial)
        try:
            os.rename(partial, folder)
        except OSError:  # another process was faster; its folder holds the same bits
            shutil.rmtree(partial)
    return folder


def tiny_folder() -> Path:
    """Where `ensure_tiny` writes: one folder for each user and format."""
    return Path(tempfile.gettempdir()) / f"safelight-tiny-v3-{os.getuid()}"
