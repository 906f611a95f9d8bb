"""A check of each part of a checkpoint folder without reading a weight. Every fault is one line."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json
from safelight.models.checkpoints.missing_files import describe_missing
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import (
    PartFiles,
    Shapes,
    StoredTensor,
    differences,
    dtype_name,
    list_tensors,
    shapes_of,
)
from safelight.models.checkpoints.weight_files import find_weight_files
from safelight.models.families.spec import Family, Part, check_variant, has_part
from safelight.models.inspection.expected_tensors import files_of


@dataclass(frozen=True, slots=True)
class PartReport:
    """One part: its class and size by its configuration, its dtypes and bytes by its files."""

    folder: str
    class_name: str | None  # None: an optional part that is left out
    num_parameters: int  # numbers in the weights, including tables that are not learned
    dtypes: Mapping[str, int]  # number of tensors by dtype, with safetensors' names
    bytes_on_disk: int
    variant: str = ""  # of the weight files that are read; empty: those without a variant
    ignored_options: tuple[str, ...] = ()  # of the configuration, because they are not known


def check_parts(
    folder: Path,
    family: Family,
    options: ReadOptions = DEFAULT_READ_OPTIONS,
    dtype: torch.dtype | None = None,
) -> tuple[list[PartReport], list[str]]:
    """A report on every part of `family` in `folder`, and all faults, one line each.

    The weight files are those that are read for `dtype`, where the folder has several variants.
    """
    faults: list[str] = []
    with collected(faults, folder):
        check_variant(folder, family, options.variant)
    reports = [_check_part(folder, part, options, dtype, faults) for part in family.parts]
    conditioning = family.conditioning
    if not (faults and conditioning.check_needs_sound_parts):
        with collected(faults, folder / conditioning.checked_file):
            conditioning.check(folder)
    return reports, faults


@contextmanager
def collected(faults: list[str], path: Path) -> Iterator[None]:
    """Add an error raised inside to `faults` as one line about `path`, unless that line is already there.

    All exceptions are collected, because a malformed configuration can raise any type.
    """
    try:
        yield
    except Exception as error:
        add_fault(faults, _in_words(error, path))


def add_fault(faults: list[str], words: str) -> None:
    """Add `words` to `faults` as one line, unless that line is already there."""
    line = " ".join(words.split())
    if line not in faults:
        faults.append(line)


def _in_words(error: Exception, path: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read: {error.strerror}"
    return f"{path}: {type(error).__name__}: {error}"


def _check_part(
    folder: Path, part: Part, options: ReadOptions, dtype: torch.dtype | None, faults: list[str]
) -> PartReport:
    path, files = folder / part.folder, files_of(part, options)
    if not has_part(folder, part):
        return PartReport(part.folder, None, 0, {}, 0)
    if not path.is_dir():
        add_fault(faults, f"{path} {describe_missing(path)}")
        return PartReport(part.folder, None, 0, {}, 0)
    expected: Shapes = {}
    stored: dict[str, StoredTensor] = {}
    variant = ""
    with collected(faults, path):
        expected = files.expected_shapes(path)
    with collected(faults, path):
        variant = find_weight_files(path, files.weights, options, dtype_name(dtype)).variant
        stored = files.canonical_names(list_tensors(path, files.weights, options, dtype))
    if expected and stored:
        for line in differences(expected, shapes_of(stored)):
            add_fault(faults, f"{path}: {line}")
    if part.tokenizer and files.check_tokenizer:
        with collected(faults, folder / part.tokenizer):
            files.check_tokenizer(path, folder / part.tokenizer)
    class_name = "unknown"
    with collected(faults, path):
        class_name = _class_name(path)
    return PartReport(
        folder=part.folder,
        class_name=class_name,
        num_parameters=sum(math.prod(shape) for shape in expected.values()),
        dtypes=Counter(tensor.dtype for tensor in stored.values()),
        bytes_on_disk=sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()}),
        variant=variant,
        ignored_options=_ignored_options(path, files) if options.allow_unknown_config else (),
    )


def _ignored_options(path: Path, files: PartFiles) -> tuple[str, ...]:
    try:
        return files.unknown_options(path) if files.unknown_options else ()
    except CheckpointError:  # a fault that is already in the report
        return ()


def _class_name(path: Path) -> str:
    """The name of the part's class in its configuration."""
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
