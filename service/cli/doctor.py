"""`safelight doctor`: what this machine will do, found out by doing it. On a GPU, the acceptance test of the CUDA path."""

from __future__ import annotations

import argparse
import json
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.cli.arguments import add_model
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import progress
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.settings import Settings, num_cores

if TYPE_CHECKING:
    from safelight.pipeline.calibration.diagnose import CheckResult, Expectation

UNSOUND = 1
MARKS = {True: "ok", False: "FAULT", None: "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calls every attention kernel and torch.compile, compares the network with the plain one in float32, draws images alone and "
        "in company, measures what a tick costs, starts Ray, tries the port. Ends with 1 if anything is not as it should be."
    )
    add_model(parser)
    parser.add_argument("--port", help="that the service would listen on; default 8000")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(model=args.model, port=args.port)
    model = model_of(settings)
    with progress("loading") as say:
        with gc_frozen_imports():
            from safelight.pipeline.calibration.diagnose import Serving, device_finding, diagnose
        threads = settings.denoise_threads or num_cores()
        findings, prognosis = diagnose(
            model, Serving(threads, settings.max_rows, settings.max_tokens, settings.quantization), say
        )
        say("Ray")
        findings = [device_finding(), *findings, _ray(), _port(settings)]
    is_sound = all(finding.is_sound is not False for finding in findings)
    if args.json:
        found = {"model": model.id, "sound": is_sound, "findings": [asdict(each) for each in findings]}
        print(json.dumps(found | {"prognosis": asdict(prognosis) if prognosis else None}))
    else:
        print(_as_text(model, findings, prognosis, is_sound))
    return 0 if is_sound else UNSOUND


def _as_text(
    model: ModelInfo, findings: list[CheckResult], prognosis: Expectation | None, is_sound: bool
) -> str:
    lines = [f"{finding.name:11} {MARKS[finding.is_sound]:6} {finding.says}" for finding in findings]
    if prognosis:
        width, height = model.native_size
        what = f"{width}x{height}, {model.num_steps} steps, guidance {model.guidance_scale:g}"
        lines.append(
            f"expect      an image ({what}) alone in {prognosis.seconds:.2f} s, {prognosis.images_per_hour:.0f} an hour in full batches"
        )
    return "\n".join(
        [
            *lines,
            f"{model.id} can be served here" if is_sound else f"{model.id} cannot be served here as it is",
        ]
    )


def _ray() -> CheckResult:
    """Ray started, asked and stopped."""
    from safelight.pipeline.calibration.diagnose import CheckResult
    from safelight.service.local import CannotServe, try_ray

    try:
        return CheckResult("ray", True, f"{try_ray()} starts, and answers a task")
    except CannotServe as error:
        return CheckResult("ray", False, str(error))


def _port(settings: Settings) -> CheckResult:
    from safelight.pipeline.calibration.diagnose import CheckResult

    try:
        socket.create_server((settings.host, settings.port)).close()
    except OSError as error:
        return CheckResult("port", False, f"{settings.port} of {settings.host}: {error.strerror or error}")
    return CheckResult("port", True, f"{settings.port} of {settings.host} is free")
