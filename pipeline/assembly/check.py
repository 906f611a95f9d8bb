"""Whether a checkpoint folder could be served, found out without drawing and without reading a weight."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safelight.models.checkpoints.families import find_folder, list_sizes, recognise
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.inspection.check import PartReport, check_parts, collected
from safelight.pipeline.assembly.engine import check_fit
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.catalog.served_models import UnknownModel

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
    faults: list[str] = []
    with collected(faults, folder):
        family = recognise(folder)
    if faults:
        return FolderReport(folder, None, (), tuple(faults))
    parts, faults = check_parts(folder, family)
    with collected(faults, folder / "scheduler"):
        read_schedule(folder)
    left_out = [
        part.is_optional and report.class_name is None
        for part, report in zip(family.parts, parts, strict=True)
    ]
    if all(
        absent or report.num_parameters for absent, report in zip(left_out, parts, strict=True)
    ):  # else nobody can say if they fit
        for check in (check_fit, partial(list_sizes, family)):
            with collected(faults, folder):
                check(folder)
    return FolderReport(folder, family.name, tuple(parts), tuple(faults))
