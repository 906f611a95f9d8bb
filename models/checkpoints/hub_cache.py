"""Folders of the Hugging Face cache: `models--ORG--NAME` with its snapshots, refs and blobs.

Only the disk is read, never a network. No torch is imported here.
"""

import re
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.missing_files import describe_missing

REPOSITORY_FOLDER = re.compile(r"(model|dataset|space)s--(.+)")
REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
SNAPSHOTS = "snapshots"


def repository_id(folder: Path) -> str | None:
    """The id, such as `org/name`, of the model whose cache folder or snapshot `folder` is; None for others.

    Raises `CheckpointError` for the folder of a dataset or a space.
    """
    for candidate in (folder, _repository_of(folder)):
        match = REPOSITORY_FOLDER.fullmatch(candidate.name)
        if match is None:
            continue
        kind, name = match[1], match[2].replace("--", "/", 1)
        if kind != "model":
            raise CheckpointError(f"{folder} is the {kind} {name} in a Hugging Face cache, not a model")
        return name
    return None


def find_snapshot(folder: Path) -> Path:
    """The snapshot to read of the model whose cache folder `folder` is; any other folder itself.

    It is the one that `refs/main` names, else the only one. Raises `CheckpointError` if that is none.
    """
    repository = folder.parent if folder.name == SNAPSHOTS else folder
    if not REPOSITORY_FOLDER.fullmatch(repository.name) or (folder / "model_index.json").exists():
        return folder
    snapshots = sorted(path for path in (repository / SNAPSHOTS).glob("*") if path.is_dir())
    main = _read_main(repository)
    for snapshot in snapshots:
        if snapshot.name == main or len(snapshots) == 1:
            return snapshot
    if not snapshots:
        raise CheckpointError(f"{repository}: a snapshot {describe_missing(repository / SNAPSHOTS / 'any')}")
    why = f"refs/main names {main}, which is missing" if main else "refs/main is missing"
    raise CheckpointError(
        f"{repository} has {len(snapshots)} snapshots and {why}; give one of them as the model: "
        f"{', '.join(map(str, snapshots))}"
    )


def find_cached(name: str) -> Path | None:
    """The cache folder of the model with the id `name`, if it is in the Hugging Face cache of this machine.

    The cache is where `HF_HUB_CACHE` or `HF_HOME` says, else `~/.cache/huggingface/hub`.
    """
    if not REPOSITORY_ID.fullmatch(name):
        return None
    folder = cache_folder() / _folder_name("model", name)
    return folder if folder.is_dir() else None


def find_cached_kind(name: str) -> str | None:
    """What the cache holds under the id `name` beside models: "dataset", "space" or None."""
    if not REPOSITORY_ID.fullmatch(name):
        return None
    kinds = ("dataset", "space")
    return next((kind for kind in kinds if (cache_folder() / _folder_name(kind, name)).is_dir()), None)


def cache_folder() -> Path:
    """The Hugging Face cache of this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder_name(kind: str, name: str) -> str:
    return f"{kind}s--{name.replace('/', '--')}"


def _repository_of(folder: Path) -> Path:
    """The cache folder of the repository if `folder` is its `snapshots` or a snapshot."""
    if folder.name == SNAPSHOTS:
        return folder.parent
    return folder.parent.parent if folder.parent.name == SNAPSHOTS else folder


def _read_main(repository: Path) -> str:
    """The revision that `refs/main` names; empty without that file."""
    try:
        return (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
