"""`safelight check`: whether a checkpoint folder can be served, without loading its weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_defaults, add_reading, add_served_name, model_settings
from safelight.service.cli.inputs import models_of, settings_of
from safelight.service.http.translation import describe_defaults
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.served_model import read_options
from safelight.service.settings import Settings
from safelight.service.stage_sets import plan_stages, served_by

if TYPE_CHECKING:
    from safelight.pipeline.assembly.check import FolderReport, PartReport

FAULTY = 1
BYTES_PER_PARAMETER = {"bfloat16": 2, "float32": 4}
PREFIXES = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
WIDTHS = (14, 28, 10, 8, 8, 8, 30)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads the configurations, the tokenizers and the headers of the weight files, not the weights. "
        "Prints one line for each fault. The exit status is 1 if there is any."
    )
    parser.add_argument(
        "folder",
        metavar="DIR",
        help="a checkpoint folder, the id of a model in the Hugging Face cache, or an embedded model's name; "
        "or several of them, separated by commas",
    )
    add_reading(parser)
    add_served_name(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_defaults(parser)


def run(args: argparse.Namespace) -> int:
    with gc_frozen_imports():
        from safelight.pipeline.assembly.check import FolderReport, check_folder
    settings = settings_of(**model_settings(args) | {"model": args.folder})
    reports = []
    for name in settings.models:
        try:
            reports.append(check_folder(name, read_options(settings)))
        except UnknownModel as error:
            if not args.json:
                raise UserError(str(error)) from None
            reports.append(FolderReport(Path(name), name, None, (), (str(error),)))
    is_faulty = any(report.faults for report in reports)
    models = () if is_faulty else models_of(settings)
    for report, model in zip(reports, models or [None] * len(reports), strict=True):
        print(json.dumps(_describe(report, model)) if args.json else _as_text(report, model))
    if not args.json:
        print(*_shared_stages(models, settings), sep="\n", end="\n" * (len(models) > 1))
    return FAULTY if is_faulty else 0


def _shared_stages(models: Sequence[ModelInfo], settings: Settings) -> list[str]:
    """For each model after the first, which stages of other models serve it too."""
    sets = plan_stages(models, settings)
    lines = []
    for index, stages in enumerate(sets[1:], 1):
        parts = {"text encoder": stages.encode, "decoder": stages.decode}
        shared = [
            f"the {part} of {owner[0].id}"
            for part, name in parts.items()
            if (owner := served_by(sets[:index], name))
        ]
        lines.append(f"{stages.model.id} is served with {' and '.join(shared) or 'stages of its own'}")
    return lines


def _describe(report: FolderReport, model: ModelInfo | None) -> dict[str, object]:
    """The keys of `--json`; `model` is None for a folder with faults."""
    parts = [
        {
            "part": part.folder,
            "class": part.class_name,
            "parameters": part.num_parameters,
            "dtypes": dict(part.dtypes),
            "variant": part.variant or None,
            "ignored_options": list(part.ignored_options),
            "bytes_on_disk": part.bytes_on_disk,
            "bytes_on_device": {
                dtype: part.num_parameters * size for dtype, size in BYTES_PER_PARAMETER.items()
            },
        }
        for part in report.parts
    ]
    return {
        "path": str(report.folder),
        "id": model.id if model else report.id,
        "defaults": describe_defaults(model) if model else None,
        "family": report.family,
        "parts": parts,
        "faults": list(report.faults),
    }


def _as_text(report: FolderReport, model: ModelInfo | None) -> str:
    """The parts as a table, then the name and the defaults or the faults, then the verdict."""
    name = " ".join(str(report.folder).split())  # a folder's name may hold line breaks
    lines = [f"{name}: {report.family or 'family unknown'}"]
    if report.parts:
        lines += [
            _row("part", "class", "parameters", "on disk", *BYTES_PER_PARAMETER, "stored as"),
            *map(_part_row, report.parts),
            _totals(report),
        ]
    lines += [
        f"{part.folder}: unknown options are ignored: {', '.join(part.ignored_options)}"
        for part in report.parts
        if part.ignored_options
    ]
    if model:
        width, height = model.default_size
        lines.append(
            f"served as {' '.join(model.id.split())}; by default {width}x{height}, "
            f"{model.num_steps} steps of {model.solver} at guidance {model.guidance_scale:g}"
        )
    lines += report.faults
    count = len(report.faults)
    lines.append(f"{count} fault{'s' * (count > 1)}" if count else "sound")
    return "\n".join(lines)


def _part_row(part: PartReport) -> str:
    if part.class_name is None:
        return _row(part.folder, "left out")
    stored = ", ".join(f"{count} {dtype}" for dtype, count in part.dtypes.items())
    stored += f", variant {part.variant}" if part.variant else ""
    return _row(part.folder, part.class_name, *_amounts(part.num_parameters, part.bytes_on_disk), stored)


def _totals(report: FolderReport) -> str:
    return _row(
        "all",
        "",
        *_amounts(
            sum(part.num_parameters for part in report.parts),
            sum(part.bytes_on_disk for part in report.parts),
        ),
    )


def _amounts(num_parameters: int, bytes_on_disk: int) -> list[str]:
    return [
        _short(num_parameters),
        f"{_short(bytes_on_disk)}B",
        *(f"{_short(num_parameters * size)}B" for size in BYTES_PER_PARAMETER.values()),
    ]


def _row(*cells: str) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)).rstrip()


def _short(number: int) -> str:
    """`number` with three digits and a decimal prefix."""
    scale, prefix = next(((scale, prefix) for scale, prefix in PREFIXES if number >= 0.9995 * scale), (1, ""))
    return f"{number / scale:.3g} {prefix}"
