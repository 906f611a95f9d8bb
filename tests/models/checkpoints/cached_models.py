"""A Hugging Face cache in the layout of huggingface_hub: blobs, refs, and snapshots of links."""

import hashlib
import shutil
from pathlib import Path

REVISION = "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f"


def write_snapshot(
    cache: Path, source: Path, name: str = "models--org--name", revision: str = REVISION, *, main: bool = True
) -> Path:
    """Store the files of `source` as a snapshot in `cache`; returns the snapshot."""
    repository = cache / name
    snapshot = repository / "snapshots" / revision
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = snapshot / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        place.symlink_to(Path(*[".."] * (len(place.relative_to(repository).parts) - 1)) / "blobs" / blob.name)
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return snapshot
