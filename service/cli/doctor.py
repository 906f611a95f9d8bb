"""`safelight doctor`: checks what this machine can do with a model. On a GPU, the acceptance test of CUDA."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.cli.arguments import add_defaults, add_model, model_settings
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import progress
from safelight.service.runtime.cores import num_cores
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.settings import Settings

if TYPE_CHECKING:
    from safelight.pipeline.calibration.checks import CheckResult
    from safelight.pipeline.calibration.image_check import Expectation

UNSOUND = 1
RESULT_TEXTS = {True: "ok", False: "FAILED", None: "info"}
CHECK_TITLES = {"neighbours": "batch invariance", "compile": "torch.compile", "ray": "Ray"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Checks every attention kernel, torch.compile, the network against the plain one in float32, "
        "an image alone and in a batch, Ray, and the port; measures the cost curve. "
        "The exit status is 1 if a check fails."
    )
    add_model(parser)
    parser.add_argument("--port", help="port that the service would listen on; default 8000")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    add_defaults(parser)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(**model_settings(args), port=args.port)
    model = model_of(settings)
    with progress("loading the model") as say:
        with gc_frozen_imports():
            from safelight.pipeline.calibration.checks import check_device
            from safelight.pipeline.calibration.diagnose import diagnose
            from safelight.pipeline.calibration.image_check import DenoiserOptions
        options = DenoiserOptions(
            num_threads=settings.denoise_threads or num_cores(),
            max_rows=settings.max_rows,
            max_tokens=settings.max_tokens,
            quantization=settings.quantization,
        )
        results, expectation = diagnose(model, options, say)
        say("Ray")
        results = [check_device(), *results, _check_ray(), _check_port(settings)]
    is_sound = all(result.is_sound is not False for result in results)
    if args.json:
        report = {
            "model": model.id,
            "sound": is_sound,
            "findings": [result.as_dict() for result in results],
            "prognosis": expectation.as_dict() if expectation else None,
        }
        print(json.dumps(report))
    else:
        print(_as_text(model, results, expectation, is_sound))
    return 0 if is_sound else UNSOUND


def _as_text(
    model: ModelInfo, results: list[CheckResult], expectation: Expectation | None, is_sound: bool
) -> str:
    lines = [_line("check", "result", "detail")]
    for result in results:
        title = CHECK_TITLES.get(result.name, result.name)
        lines.append(_line(title, RESULT_TEXTS[result.is_sound], result.message))
    if expectation:
        width, height = model.default_size
        lines += [
            "",
            f"expected for {width}x{height}, {model.num_steps} steps, guidance {model.guidance_scale:g}",
            f"  latency of one image alone   {expectation.seconds:.2f} s",
            f"  throughput in full batches   {expectation.images_per_hour:.0f} images/h",
        ]
    verdict = "can be served here" if is_sound else "cannot be served here as it is"
    return "\n".join([*lines, "", f"{model.id} {verdict}"])


def _line(check: str, result: str, detail: str) -> str:
    return f"{check:16}  {result:6}  {detail}"


def _check_ray() -> CheckResult:
    """Start Ray, run a task, and stop it."""
    from safelight.pipeline.calibration.checks import CheckResult
    from safelight.service.local import CannotServe, try_ray

    try:
        return CheckResult("ray", True, f"version {try_ray()} starts and answers a task")
    except CannotServe as error:
        return CheckResult("ray", False, str(error))


def _check_port(settings: Settings) -> CheckResult:
    """Take the service's port for a moment."""
    from safelight.pipeline.calibration.checks import CheckResult
    from safelight.service.runtime.addresses import BadAddress, bound, find_address

    try:
        with bound(find_address(settings.host, settings.port)) as at:
            return CheckResult("port", True, f"{settings.port} of {at.address.host} is free")
    except BadAddress as error:
        return CheckResult("port", False, str(error))
