"""Whether the parts of a checkpoint folder are sound, each by itself, without reading a weight: every fault in one line."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safelight.models.checkpoints.families import Family, Part
from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json
from safelight.models.checkpoints.tensors import Shapes, Stored, differences, list_tensors, shapes_of
from safelight.models.inspection.expected_tensors import PART_KINDS
from safelight.models.text import sd3
from safelight.models.text.label import Labels


@dataclass(frozen=True, slots=True)
class PartReport:
    """A part as its configuration wants it and as its files are; `class_name` is None where an optional part is left out."""

    folder: str
    class_name: str | None
    num_parameters: int  # numbers that its weights hold, tables that are not learned among them
    dtypes: Mapping[str, int]  # how many tensors are stored in which, by safetensors' words
    bytes_on_disk: int


def check_parts(folder: Path, family: Family) -> tuple[list[PartReport], list[str]]:
    """A report on every part of `family` in `folder`, and all faults, one line each."""
    faults: list[str] = []
    reports = [_check_part(folder, part, faults) for part in family.parts]
    if family.parts[0].kind == "clip" and not faults:
        with collected(faults, folder):
            sd3.check_tokenizers(folder)
    if family.has_classes:
        with collected(faults, folder / "model_index.json"):
            Labels(folder)
    return reports, faults


@contextmanager
def collected(faults: list[str], path: Path) -> Iterator[None]:
    """Add what is raised inside to `faults` as one line about `path`, unless it is there already.

    A configuration full of nonsense can make its readers raise anything.
    """
    try:
        yield
    except Exception as error:
        add_fault(faults, _in_words(error, path))


def add_fault(faults: list[str], words: str) -> None:
    """As one line, whatever a folder may be called, unless it is there already."""
    line = " ".join(words.split())
    if line not in faults:
        faults.append(line)


def _in_words(error: Exception, path: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read: {error.strerror}"
    return f"{path}: {type(error).__name__}: {error}"


def _check_part(folder: Path, part: Part, faults: list[str]) -> PartReport:
    path, kind = folder / part.folder, PART_KINDS[part.kind]
    if not path.is_dir():
        if not part.is_optional:
            add_fault(faults, f"{path} is missing")
        return PartReport(part.folder, None, 0, {}, 0)
    wanted: Shapes = {}
    stored: dict[str, Stored] = {}
    with collected(faults, path):
        wanted = kind.blueprint(path)
    with collected(faults, path):
        stored = kind.canonical(list_tensors(path, kind.weights))
    if wanted and stored:
        for line in differences(wanted, shapes_of(stored)):
            add_fault(faults, f"{path}: {line}")
    if part.tokenizer and kind.check_tokenizer:
        with collected(faults, folder / part.tokenizer):
            kind.check_tokenizer(path, folder / part.tokenizer)
    class_name = "unknown"
    with collected(faults, path):
        class_name = _class_name(path)
    return PartReport(
        folder=part.folder,
        class_name=class_name,
        num_parameters=sum(math.prod(shape) for shape in wanted.values()),
        dtypes=Counter(tensor.dtype for tensor in stored.values()),
        bytes_on_disk=sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()}),
    )


def _class_name(path: Path) -> str:
    """What its configuration calls the part."""
    if (path / CLIP_CONFIG).exists():
        return "CustomTextCLIP"
    try:
        config = read_json(path / "config.json")
    except CheckpointError:
        return "unknown"
    architectures = config.get("architectures")
    return str(
        config.get("_class_name")
        or (architectures[0] if isinstance(architectures, list) and architectures else "unknown")
    )
