"""Why a file of a checkpoint folder is not there: a link without its target, or an unfinished download.

No torch is imported here.
"""

from collections.abc import Iterator
from pathlib import Path

UNFINISHED = "*.incomplete"  # how huggingface_hub names files while it downloads them
LOCAL_DOWNLOADS = Path(".cache/huggingface/download")  # in a folder of `hf download --local-dir`


def is_there(path: Path) -> bool:
    """Whether there is a file called `path`, even if it is a link without a target."""
    return path.is_symlink() or path.exists()


def describe_missing(path: Path) -> str:
    """What is wrong with `path`, which cannot be opened because it or its target is missing."""
    if path.is_symlink():
        return f"is a link to {path.readlink()}, which is missing: the download is not complete"
    unfinished = sorted(_unfinished_files(path))
    if not unfinished:
        return "is missing"
    more = f" (and {len(unfinished) - 1} more)" if len(unfinished) > 1 else ""
    return f"is missing: the download is not complete, {unfinished[0]}{more} is unfinished"


def find_broken_links(folder: Path) -> list[Path]:
    """The links in `folder` whose targets are missing."""
    return [path for path in sorted(folder.glob("*")) if path.is_symlink() and not path.exists()]


def _unfinished_files(path: Path) -> Iterator[Path]:
    """Unfinished downloads of the checkpoint to which `path` belongs."""
    for folder in path.parents:
        if (folder / LOCAL_DOWNLOADS).is_dir():
            yield from (folder / LOCAL_DOWNLOADS).rglob(UNFINISHED)
            return
        if folder.name == "snapshots":
            yield from (folder.parent / "blobs").glob(UNFINISHED)
            return
