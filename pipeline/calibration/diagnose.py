"""Runs every check of `safelight doctor` on a model: the acceptance test of a device, above all of a GPU.

It calls kernels, generates images and compares bits. A failure becomes a check's result, not an exception.
"""

from collections.abc import Callable
from functools import partial

from safelight.pipeline.assembly.device import set_threads
from safelight.pipeline.calibration.checks import (
    CheckResult,
    check_attention,
    check_compile,
    check_network,
    check_weights,
    failed_check,
)
from safelight.pipeline.calibration.image_check import DenoiserOptions, Expectation, check_images
from safelight.pipeline.calibration.progress import ProgressCallback
from safelight.pipeline.catalog.model_info import ModelInfo


def diagnose(
    model: ModelInfo, options: DenoiserOptions, progress: ProgressCallback
) -> tuple[list[CheckResult], Expectation | None]:
    """Run all checks with the options of the service. The expectation is None if no image was generated."""
    set_threads(options.num_threads)
    checks: dict[str, Callable[[ModelInfo], CheckResult]] = {
        "weights": check_weights,
        "attention": check_attention,
        "compile": check_compile,
        "network": partial(check_network, quantization=options.quantization),
    }
    results: list[CheckResult] = []
    for name, check in checks.items():
        progress(name)
        results.append(_run(name, check, model))
    if not results[0].is_sound:
        return results, None
    progress("images")
    try:
        image_results, expectation = check_images(model, options)
    except Exception as error:
        return [*results, failed_check("images", error)], None
    return results + image_results, expectation


def _run(name: str, check: Callable[[ModelInfo], CheckResult], model: ModelInfo) -> CheckResult:
    try:
        return check(model)
    except Exception as error:
        return failed_check(name, error)
