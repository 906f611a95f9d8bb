"""Checkpoints by name or folder: the embedded models, the `tiny` preset, and any folder on disk.

No torch is imported here, except to write `tiny`.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safelight.models.checkpoints import hub_cache
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.missing_files import describe_missing
from safelight.models.families.image_sizes import Size, list_sizes
from safelight.models.families.registry import recognise
from safelight.models.families.spec import Family, check_variant

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
TINY = "tiny"  # random weights from a fixed seed, for tests


@dataclass(frozen=True, slots=True)
class Distillation:
    """What a few-step student was trained for: guidance is in its weights.

    Attributes:
        max_steps: The steps of its default, and the most.
        solvers: Those that take the steps that it learned; the first is the default.
    """

    max_steps: int
    solvers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """The facts about an embedded model that its folder does not state.

    Attributes:
        licence: Of the weights.
        more_sizes: Served beside the native square.
        folder: The folder in `WEIGHTS_FOLDER`.
        variant: The weight files to read; parts without it are those of the folder's other models.
        distillation: Of a few-step student.
    """

    licence: str
    more_sizes: tuple[Size, ...] = ()
    folder: str = "emoji-128"
    variant: str = ""
    distillation: Distillation | None = None


EMOJI_LICENCE = "weights: Apache-2.0; trained on Fluent Emoji (MIT) and Noto Emoji (Apache-2.0)"
EMBEDDED = {
    "emoji-128": EmbeddedModel(EMOJI_LICENCE),
    "emoji-128-turbo": EmbeddedModel(
        EMOJI_LICENCE, variant="turbo", distillation=Distillation(4, ("euler", "ddim"))
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
    variant: str  # of the weight files to read
    distillation: Distillation | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a model is, and its id: a known name, the id in the Hugging Face cache, or the folder's name."""

    id: str
    path: Path


def find_checkpoint(name_or_dir: str, variant: str = "") -> Checkpoint:
    """The checkpoint of an embedded model's name, of `tiny`, of a folder, or of an id in the hub cache.

    Raises `CheckpointError` if there is none, if no family matches the folder, or if no part has `variant`.
    """
    model = find_model_folder(name_or_dir)
    family = recognise(model.path)
    embedded = EMBEDDED.get(name_or_dir) or EmbeddedModel(
        "none: random weights" if name_or_dir == TINY else "see the folder"
    )
    variant = embedded.variant or variant
    check_variant(model.path, family, variant)
    sizes = (*list_sizes(family, model.path), *embedded.more_sizes)
    return Checkpoint(model.id, model.path, family, sizes, embedded.licence, variant, embedded.distillation)


def find_folder(name_or_dir: str) -> Path:
    """The folder of a model, whatever it holds. Raises `CheckpointError` as `find_model_folder` does."""
    return find_model_folder(name_or_dir).path


def find_model_folder(name_or_dir: str) -> ModelFolder:
    """The folder and the id of a model, whatever the folder holds.

    A folder of the Hugging Face cache stands for its snapshot. An id such as `org/name` that is no folder is
    looked up in that cache, on this machine only.
    Raises `CheckpointError` if `name_or_dir` is neither a known name, nor a folder, nor in the cache.
    """
    if name_or_dir == TINY:
        return ModelFolder(TINY, ensure_tiny())
    if name_or_dir in EMBEDDED:
        return ModelFolder(name_or_dir, WEIGHTS_FOLDER / EMBEDDED[name_or_dir].folder)
    folder = _existing_folder(name_or_dir).resolve()
    repository = hub_cache.repository_id(folder)
    return ModelFolder(repository or folder.name, hub_cache.find_snapshot(folder))


def _existing_folder(name_or_dir: str) -> Path:
    folder = Path(name_or_dir).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"model {name_or_dir!r} is a file, a checkpoint is a folder with a model_index.json"
        )
    if folder.is_symlink():
        raise CheckpointError(f"model {name_or_dir!r} {describe_missing(folder)}")
    if cached := hub_cache.find_cached(name_or_dir):
        return cached
    problem = f"model {name_or_dir!r} is neither a folder nor one of {', '.join((*EMBEDDED, TINY))}"
    if kind := hub_cache.find_cached_kind(name_or_dir):
        problem += f"; the Hugging Face cache holds a {kind} of that name"
    elif "/" in name_or_dir and hub_cache.REPOSITORY_ID.fullmatch(name_or_dir):
        problem += f", nor in the Hugging Face cache {hub_cache.cache_folder()}"
    raise CheckpointError(problem)


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
