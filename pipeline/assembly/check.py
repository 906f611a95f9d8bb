"""A check whether a checkpoint folder can be served, without generating an image or reading a weight."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.families.image_sizes import list_sizes
from safelight.models.families.registry import recognise
from safelight.models.families.spec import Family, has_part
from safelight.models.find_checkpoint import find_model_folder
from safelight.models.inspection.check import PartReport, check_parts, collected
from safelight.pipeline.assembly.device import fast_dtype
from safelight.pipeline.assembly.engine import check_fit
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.catalog.served_models import UnknownModel

__all__ = ["FolderReport", "PartReport", "check_folder"]


@dataclass(frozen=True, slots=True)
class FolderReport:
    """The parts of a folder and its `faults`, one line each. A folder without faults can be served."""

    folder: Path
    id: str
    family: str | None  # None: unknown, and there are no parts
    parts: tuple[PartReport, ...]
    faults: tuple[str, ...]


def check_folder(name_or_dir: str, options: ReadOptions = DEFAULT_READ_OPTIONS) -> FolderReport:
    """Check the parts of an embedded model or a checkpoint folder, each by itself and together.

    Raises `UnknownModel` if there is no such folder.
    """
    try:
        model = find_model_folder(name_or_dir)
    except CheckpointError as error:
        raise UnknownModel(str(error)) from None
    folder, faults = model.path, list[str]()
    with collected(faults, folder):
        family = recognise(folder)
    if faults:
        return FolderReport(folder, model.id, None, (), tuple(faults))
    parts, faults = check_parts(folder, family, options, fast_dtype())
    with collected(faults, folder / "scheduler"):
        read_schedule(folder)
    if _can_compare(folder, family, parts):
        for check in (partial(check_fit, options=options), partial(list_sizes, family)):
            with collected(faults, folder):
                check(folder)
    return FolderReport(folder, model.id, family.name, tuple(parts), tuple(faults))


def _can_compare(folder: Path, family: Family, reports: list[PartReport]) -> bool:
    """Whether every part is readable or left out, so that the parts can be compared with each other."""
    return all(
        report.num_parameters or not has_part(folder, part)
        for part, report in zip(family.parts, reports, strict=True)
    )
