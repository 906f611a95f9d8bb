"""Whether a checkpoint folder could be served, found out without drawing and without reading a weight."""

from dataclasses import dataclass
from pathlib import Path

from models.check import PartReport, check_parts, collected
from models.folder import CheckpointError
from models.registry import find_folder, list_sizes, recognise
from pipeline.build.engine import check_fit
from pipeline.build.schedule import read_schedule
from pipeline.catalog import UnknownModel

__all__ = ["FolderReport", "PartReport", "check_folder"]


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What there is, and `faults`, one line each: a folder without any can be served. An unknown family has no parts."""

    folder: Path
    family: str | None
    parts: tuple[PartReport, ...]
    faults: tuple[str, ...]


def check_folder(name_or_dir: str) -> FolderReport:
    """The parts of an embedded model or a checkpoint folder, each by itself and together; raise `UnknownModel` if there is no folder."""
    try:
        folder = find_folder(name_or_dir)
    except CheckpointError as error:
        raise UnknownModel(str(error)) from None
    try:
        family = recognise(folder)
    except CheckpointError as error:
        return FolderReport(folder, None, (), (str(error),))
    parts, faults = check_parts(folder, family)
    with collected(faults, folder / "scheduler"):
        read_schedule(folder)
    if all(part.num_parameters or part.class_name is None for part in parts):  # else nobody can say if they fit together
        with collected(faults, folder):
            list_sizes(family, folder)
        with collected(faults, folder):
            check_fit(folder)
    return FolderReport(folder, family.name, tuple(parts), tuple(faults))
