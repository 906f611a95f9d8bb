"""A check whether a checkpoint folder can be served, without generating an image or reading a weight."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.families.image_sizes import list_sizes
from safelight.models.families.registry import recognise
from safelight.models.families.spec import Family
from safelight.models.find_checkpoint import find_folder
from safelight.models.inspection.check import PartReport, check_parts, collected
from safelight.pipeline.assembly.engine import check_fit
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.catalog.served_models import UnknownModel

__all__ = ["FolderReport", "PartReport", "check_folder"]


@dataclass(frozen=True, slots=True)
class FolderReport:
    """The parts of a folder and its `faults`, one line each. A folder without faults can be served."""

    folder: Path
    family: str | None  # None: unknown, and there are no parts
    parts: tuple[PartReport, ...]
    faults: tuple[str, ...]


def check_folder(name_or_dir: str) -> FolderReport:
    """Check the parts of an embedded model or a checkpoint folder, each by itself and together.

    Raises `UnknownModel` if there is no such folder.
    """
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
    if _can_compare(family, parts):
        for check in (check_fit, partial(list_sizes, family)):
            with collected(faults, folder):
                check(folder)
    return FolderReport(folder, family.name, tuple(parts), tuple(faults))


def _can_compare(family: Family, reports: list[PartReport]) -> bool:
    """Whether every part is readable or left out, so that the parts can be compared with each other."""
    return all(
        report.num_parameters or (part.is_optional and report.class_name is None)
        for part, report in zip(family.parts, reports, strict=True)
    )
