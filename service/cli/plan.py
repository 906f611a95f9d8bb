"""`safelight plan`: predicts throughput, latency and replicas of a model on a device."""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import replace
from pathlib import Path

from safelight.pipeline.capacity.devices import (
    GPUS,
    MEASURED_PEAK_MFU,
    STAGES,
    ConstantRateDevice,
    MeasuredDevice,
    measured_device,
)
from safelight.pipeline.capacity.image_cost import ImageSpec, ModelProfile, image_cost
from safelight.pipeline.capacity.model_profiles import list_published, model_profile, published_profile
from safelight.pipeline.capacity.predict import Targets, predict
from safelight.pipeline.catalog.model_info import ModelInfo, applied_guidance_scale
from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, model_settings
from safelight.service.cli.inputs import key_headers, settings_of
from safelight.service.cli.plan_report import as_text
from safelight.service.cli.plan_values import (
    DeviceChoice,
    cost_per_1000,
    describe_prediction,
    describe_request,
)
from safelight.service.cli.progress import ProgressCallback, progress
from safelight.service.errors import as_invalid_request
from safelight.service.runtime.cores import num_cores
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.served_model import find_served_model, request_defaults
from safelight.service.settings import Settings

THIS_MACHINE = "cpu"
MAX_PERCENTILE = 99.99
POSITIVE_FLAGS = ("images_per_hour", "latency_s", "peak_tflops", "price_per_hour")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predicts throughput, latency and replicas from the model's operations and the device's speed. "
        "No weights are loaded and no images drawn, except with --gpu cpu, which measures this machine. "
        "Requests are assumed to arrive at random (Poisson), one image each."
    )
    _add_image_arguments(parser)
    _add_device_arguments(parser)
    _add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _add_image_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and image")
    add_model(group, names=", or the name of a published checkpoint such as sd3-medium")
    group.add_argument("--size", metavar="WxH", help="image size in pixels; default: the model's native size")
    group.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps, 1 to 200; default: the model's"
    )
    group.add_argument(
        "--guidance-scale",
        type=float,
        metavar="W",
        help="guidance scale, 0 to 20; up to 1 is off; default: the model's",
    )
    group.add_argument("--solver", metavar="NAME", help="one of `safelight solvers`; default: the model's")


def _add_device_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("device")
    group.add_argument(
        "--gpu",
        default="a100",
        metavar="NAME",
        help="a100, h100, h200, l40s, or cpu to measure this machine; default %(default)s",
    )
    group.add_argument(
        "--service",
        metavar="URL",
        help="with --gpu cpu: use the cost curves of the running service at this URL, not measurements; an "
        "API key that it needs is in SAFELIGHT_KEY",
    )
    group.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="share of the peak that is reached, 0 to 1; default: that of eager PyTorch, 0.4 on an A100",
    )
    group.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="peak of the device in TFLOPS; default: from its data sheet, or measured with --gpu cpu",
    )
    group.add_argument(
        "--price-per-hour",
        type=float,
        metavar="P",
        help="price of a device for an hour, in any currency; adds the cost of 1000 images",
    )


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("targets")
    group.add_argument(
        "--images-per-hour",
        type=float,
        default=1000.0,
        metavar="N",
        help="target throughput, and the load for the latency; default %(default)g",
    )
    group.add_argument(
        "--latency-s",
        type=float,
        default=5.0,
        metavar="S",
        help="target latency in seconds at the percentile; default %(default)g",
    )
    group.add_argument(
        "--percentile",
        type=float,
        default=95.0,
        metavar="P",
        help="percentile of the target latency; default %(default)g",
    )


def run(args: argparse.Namespace) -> int:
    _check(args)
    settings = settings_of(**model_settings(args))
    if settings.model in list_published():
        _check_published(args, settings.model)
    with progress("reading the model") as say:
        model, profile = _find_profile(settings)
        spec = _image_spec(args, profile)
        targets = Targets(args.images_per_hour, args.latency_s, args.percentile)
        try:
            image_cost(profile, spec)  # refuses an impossible image before anything is measured
            choice = _choose_device(args, model, profile, spec, say)
            prediction = predict(profile, spec, choice.device, targets)
        except InvalidParams as error:
            raise UserError(str(as_invalid_request(error))) from None
    report = {
        **describe_request(profile, spec, choice, targets, prediction),
        **describe_prediction(prediction),
        "cost_per_1000_images": cost_per_1000(prediction, args.price_per_hour),
    }
    print(json.dumps(report) if args.json else as_text(report))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.service is not None:
        _check_service(args)
    if args.gpu not in (*GPUS, THIS_MACHINE):
        raise UserError(f"--gpu must be one of {', '.join((*GPUS, THIS_MACHINE))}, got {args.gpu!r}")
    for name in POSITIVE_FLAGS:
        value = getattr(args, name)
        if value is not None and not 0.0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be more than 0 and finite, got {value}")
    if args.mfu is not None and not 0.0 < args.mfu <= 1.0:
        raise UserError(f"--mfu must be more than 0 and at most 1, got {args.mfu}")
    if not 0.0 < args.percentile <= MAX_PERCENTILE:
        raise UserError(
            f"--percentile must be more than 0 and at most {MAX_PERCENTILE}, got {args.percentile}"
        )


def _check_service(args: argparse.Namespace) -> None:
    """Raise `UserError` for flags that `--service` would leave without effect."""
    if args.gpu != THIS_MACHINE:
        raise UserError("--service needs --gpu cpu")
    for name in ("mfu", "peak_tflops"):
        if getattr(args, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} has no effect with --service, which measures its own speed; leave it out"
            )


def _check_published(args: argparse.Namespace, model: str) -> None:
    """Raise `UserError` for flags that have no effect on a published checkpoint."""
    for name in ("variant", "allow_unknown_config"):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} has no effect on {model}, which is planned without a folder; leave it out"
            )


def _find_profile(settings: Settings) -> tuple[ModelInfo | None, ModelProfile]:
    """A published checkpoint by its name, without model information; else an embedded model or a folder."""
    with gc_frozen_imports():
        try:
            if settings.model in list_published():
                defaults = request_defaults(settings, (settings.model,))
                return None, replace(published_profile(settings.model), **defaults.changes())
            model = find_served_model(settings)
            return model, model_profile(model)
        except (UnknownModel, ValueError) as error:
            message = str(error)
            if "neither a folder" in message:
                message += f"; published checkpoints: {', '.join(list_published())}"
            raise UserError(message) from None


def _image_spec(args: argparse.Namespace, profile: ModelProfile) -> ImageSpec:
    size = profile.default_size
    if args.size is not None and args.size != "auto":
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", args.size)
        if match is None:
            raise UserError(f"--size must be WIDTHxHEIGHT or auto, got {args.size!r}")
        size = int(match[1]), int(match[2])
    return ImageSpec(
        size,
        profile.num_steps if args.steps is None else args.steps,
        applied_guidance_scale(
            profile.guidance_scale if args.guidance_scale is None else args.guidance_scale
        ),
        args.solver or profile.solver,
    )


def _choose_device(
    args: argparse.Namespace,
    model: ModelInfo | None,
    profile: ModelProfile,
    spec: ImageSpec,
    say: ProgressCallback,
) -> DeviceChoice:
    """The GPU or machine that the flags name, measured if need be.

    Args:
        args: The command's flags.
        model: The model to measure with; None for a published checkpoint.
        profile: The model's profile.
        spec: The image.
        say: Shows one line of progress.
    """
    if args.gpu != THIS_MACHINE:
        gpu = GPUS[args.gpu]
        return _constant_rate(args, gpu.name, gpu.peak_flops, gpu.eager_mfu)
    if args.service is not None:
        return DeviceChoice(f"the service at {args.service}", _service_device(args, model, profile, spec))
    if args.peak_tflops:
        return _constant_rate(args, "this machine", args.peak_tflops, MEASURED_PEAK_MFU)
    if model is not None and args.mfu is None and (device := _measure(args, model, spec, say)) is not None:
        return DeviceChoice("this machine, measured", device)
    say("measuring the best matrix product")
    with gc_frozen_imports():
        from safelight.pipeline.calibration.stage_times import measure_peak
    peak = measure_peak(_num_threads(args))
    return _constant_rate(args, "this machine by its best matrix product", peak, MEASURED_PEAK_MFU)


def _measure(
    args: argparse.Namespace, model: ModelInfo, spec: ImageSpec, say: ProgressCallback
) -> MeasuredDevice | None:
    """This machine as measured with the model; None for a model too large to run here."""
    with gc_frozen_imports():
        from safelight.pipeline.calibration.stage_times import measure_stage_times
    settings = settings_of(**model_settings(args))
    try:
        return measure_stage_times(
            model,
            spec.size,
            num_threads=_num_threads(args),
            max_rows=settings.max_rows,
            max_tokens=settings.max_tokens,
            quantization=settings.quantization,
            progress=say,
        )
    except ValueError as error:  # a checkpoint that cannot be loaded
        raise UserError(str(error)) from None


def _num_threads(args: argparse.Namespace) -> int:
    return settings_of(**model_settings(args)).denoise_threads or num_cores()


def _service_device(
    args: argparse.Namespace, model: ModelInfo | None, profile: ModelProfile, spec: ImageSpec
) -> MeasuredDevice:
    """The running service at `--service`, by the cost curves of its stages and its own limits of a tick."""
    import httpx2

    try:
        response = httpx2.get(f"{args.service}/v1/curve", headers=key_headers(), timeout=30.0)
        answer = response.raise_for_status().json()
        served, limits = answer["model"], (int(answer["max_rows"]), int(answer["max_tokens"]))
        curves = {
            stage: CostCurve(tuple(curve["work_flops"]), tuple(curve["seconds"]), curve["factor"])
            for stage in STAGES
            if (curve := answer[stage]) is not None
        }
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--service {args.service} has no cost curves: {reason}") from None
    # A folder or a published checkpoint may be served under another name; the user says that it is the same.
    is_asserted = model is None or (args.model is not None and Path(args.model).is_dir())
    if served not in (model.names if model else (profile.name,)) and not is_asserted:
        raise UserError(f"--service {args.service} serves {served!r}, not {profile.name!r}; give its --model")
    try:
        return measured_device(curves, profile, spec.size, *limits)
    except KeyError as error:
        raise UserError(f"--service {args.service} has not measured its stage {error} yet") from None


def _constant_rate(args: argparse.Namespace, name: str, peak_flops: float, mfu: float) -> DeviceChoice:
    """A device at a share of its peak; `--mfu` and `--peak-tflops` override `mfu` and `peak_flops`."""
    mfu = mfu if args.mfu is None else args.mfu
    peak_flops = args.peak_tflops * 1e12 if args.peak_tflops else peak_flops
    return DeviceChoice(name, ConstantRateDevice(mfu * peak_flops), peak_flops, mfu)
