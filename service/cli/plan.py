"""`safelight plan`: how many images a device would draw and how soon, and how many devices that asks for."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from safelight.pipeline.capacity import predict as capacity
from safelight.pipeline.capacity.predict import (
    GPUS,
    ConstantRateDevice,
    Device,
    ImageSpec,
    ModelProfile,
    Prediction,
    Targets,
)
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.cli import UserError
from safelight.service.cli.inputs import settings_of
from safelight.service.cli.progress import Say, progress
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.settings import num_cores

if TYPE_CHECKING:
    from rich.table import Table

HERE = "cpu"
MFU_HERE = 0.5  # of the best matrix product, which full ticks reach (docs/performance.md)
MOST_PERCENT = 99.99
POSITIVE = ("images_per_hour", "latency_s", "peak_tflops", "price_per_hour")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The device that is reckoned with; `mfu` is None where a machine was measured."""

    name: str
    device: Device
    peak_flops: float | None
    mfu: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Predicts from the model's operations and the device's peak, before there is either: nothing is loaded and nothing drawn. "
        "Requests are taken to come at random (Poisson), one image each. With --gpu cpu this machine is measured instead."
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        help="an embedded model, a checkpoint folder, or a published checkpoint by its name, as sd3-medium; default emoji-128",
    )
    parser.add_argument(
        "--gpu",
        default="a100",
        metavar="NAME",
        help="a100, h100, h200, l40s, or cpu: this machine; default %(default)s",
    )
    parser.add_argument(
        "--service",
        metavar="URL",
        help="by what the stages of this running service have learnt of their own pace (`/v1/curve`)",
    )
    parser.add_argument("--size", metavar="WxH", help="default: the model's native size")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps, 1 to 200; default: the model's"
    )
    parser.add_argument(
        "--guidance-scale", type=float, metavar="W", help="0 to 20; 1 is off; default: the model's"
    )
    parser.add_argument("--solver", metavar="NAME", help="one of `safelight solvers`; default: the model's")
    parser.add_argument(
        "--images-per-hour", type=float, default=1000.0, metavar="N", help="wanted; default %(default)g"
    )
    parser.add_argument(
        "--latency-s",
        type=float,
        default=5.0,
        metavar="S",
        help="wanted at the percentile; default %(default)g",
    )
    parser.add_argument(
        "--percentile", type=float, default=95.0, metavar="P", help="of the latency; default %(default)g"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="of the peak that is reached, 0 to 1; default: what eager networks reach, 0.4 on an A100",
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="of the device, in place of its maker's figure or of measuring",
    )
    parser.add_argument("--price-per-hour", type=float, metavar="P", help="of a device, in any currency")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    _check(args)
    name = settings_of(model=args.model).model
    with progress("reading the model") as say:
        model, outline = _find(name)
        order = _order(args, outline)
        targets = Targets(args.images_per_hour, args.latency_s, args.percentile)
        try:
            capacity.image_cost(outline, order)  # before anything is measured
            chosen = _choose(args, model, order, say)
            found = capacity.predict(outline, order, chosen.device, targets)
        except InvalidParams as error:
            raise UserError(str(error)) from None
    told = _as_dict(outline, order, chosen, targets, found, args.price_per_hour)
    if args.json:
        print(json.dumps(told))
    else:
        _print(told)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.service is not None and args.gpu != HERE:
        raise UserError("--service is measured by itself: say --gpu cpu with it")
    if args.gpu not in (*GPUS, HERE):
        raise UserError(f"--gpu must be one of {', '.join((*GPUS, HERE))}, got {args.gpu!r}")
    for name in POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0.0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be more than 0 and finite, got {value}")
    if args.mfu is not None and not 0.0 < args.mfu <= 1.0:
        raise UserError(f"--mfu must be more than 0 and at most 1, got {args.mfu}")
    if not 0.0 < args.percentile <= MOST_PERCENT:
        raise UserError(f"--percentile must be more than 0 and at most {MOST_PERCENT}, got {args.percentile}")


def _find(name: str) -> tuple[ModelInfo | None, ModelProfile]:
    """A published checkpoint by its name, else a model that is here."""
    with gc_frozen_imports():
        if name in capacity.list_published():
            return None, capacity.published_profile(name)
        try:
            model = find_model(name)
            return model, capacity.model_profile(model)
        except (UnknownModel, ValueError) as error:
            published = (
                f"; published checkpoints: {', '.join(capacity.list_published())}"
                if "neither a folder" in str(error)
                else ""
            )
            raise UserError(f"{error}{published}") from None


def _order(args: argparse.Namespace, outline: ModelProfile) -> ImageSpec:
    size = outline.native_size
    if args.size is not None and args.size != "auto":
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", args.size)
        if found is None:
            raise UserError(f"--size must be WIDTHxHEIGHT or auto, got {args.size!r}")
        size = int(found[1]), int(found[2])
    return ImageSpec(
        size,
        outline.num_steps if args.steps is None else args.steps,
        outline.guidance_scale if args.guidance_scale is None else args.guidance_scale,
        args.solver or outline.solver,
    )


def _choose(args: argparse.Namespace, model: ModelInfo | None, order: ImageSpec, say: Say) -> Chosen:
    if args.gpu != HERE:
        gpu = GPUS[args.gpu]
        return _reaching(args, gpu.name, gpu.peak_flops, gpu.eager_mfu)
    if args.service is not None:
        return Chosen(
            f"the service at {args.service}",
            _of_service(args, _find(settings_of(model=args.model).model)[1], order),
            None,
            None,
        )
    if args.peak_tflops:
        return _reaching(args, "this machine", args.peak_tflops, MFU_HERE)
    with gc_frozen_imports():
        from safelight.pipeline.calibration.stage_times import measure_peak, measure_stage_times
    settings = settings_of(model=args.model)
    threads = settings.denoise_threads or num_cores()
    if model is not None and args.mfu is None:
        try:
            measured = measure_stage_times(
                model,
                order.size,
                num_threads=threads,
                max_rows=settings.max_rows,
                max_tokens=settings.max_tokens,
                quantization=settings.quantization,
                say=say,
            )
        except ValueError as error:  # a checkpoint that cannot be loaded
            raise UserError(str(error)) from None
        if measured is not None:
            return Chosen("this machine, measured", measured, None, None)
    say("measuring the best matrix product")
    return _reaching(args, "this machine by its best matrix product", measure_peak(threads), MFU_HERE)


def _of_service(args: argparse.Namespace, outline: ModelProfile, order: ImageSpec) -> Device:
    """By what a running service has learnt of its own stages."""
    import httpx

    try:
        said = httpx.get(f"{args.service}/v1/curve", timeout=30.0).raise_for_status().json()
        curves = {
            stage: CostCurve(tuple(each["work_flops"]), tuple(each["seconds"]), each["factor"])
            for stage, each in said.items()
        }
        settings = settings_of(model=args.model)
        return capacity.measured_by(curves, outline, order.size, settings.max_rows, settings.max_tokens)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--service {args.service} does not say what its work costs: {error or type(error).__name__}"
        ) from None


def _reaching(args: argparse.Namespace, name: str, peak: float, mfu: float) -> Chosen:
    mfu = mfu if args.mfu is None else args.mfu
    peak = args.peak_tflops * 1e12 if args.peak_tflops else peak
    return Chosen(name, ConstantRateDevice(mfu * peak), peak, mfu)


def _as_dict(
    outline: ModelProfile,
    order: ImageSpec,
    chosen: Chosen,
    targets: Targets,
    found: Prediction,
    price: float | None,
) -> dict[str, Any]:
    work = found.work
    return {
        "model": outline.name,
        "gpu": chosen.name,
        "peak_tflops": None if chosen.peak_flops is None else chosen.peak_flops / 1e12,
        "mfu": chosen.mfu,
        "size": f"{order.size[0]}x{order.size[1]}",
        "steps": order.num_steps,
        "guidance_scale": order.guidance_scale,
        "solver": order.solver,
        "nfe": len(work.ticks),
        "rows": work.rows * len(work.ticks),
        "targets": asdict(targets),
        "tflop_per_image": work.total / 1e12,
        "stage_tflop": {
            "encode": work.encode / 1e12,
            "denoise": work.denoise / 1e12,
            "decode": work.decode / 1e12,
        },
        "service_s": found.seconds.total,
        "stage_s": asdict(found.seconds),
        "latency_s": _finite(found.latency_s),
        "mean_latency_s": _finite(found.mean_latency_s),
        "images_per_hour_per_device": found.images_per_hour_per_device,
        "utilisation": found.utilisation,
        "replicas": dict(found.replicas),
        "replicas_latency_s": _finite(found.replicas_latency_s),
        "meets_latency_alone": found.meets_latency_alone,
        "meets_latency": found.meets_latency,
        "meets_throughput": found.meets_throughput,
        "steps_that_meet": {"alone": found.most_steps[0], "under_load": found.most_steps[1]},
        "cost_per_1000_images": None
        if price is None
        else 1000.0 * price * found.device_seconds / capacity.HOUR,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: a queue that grows for ever has no latency."""
    return None if value is None or math.isinf(value) else value


def _print(told: Mapping[str, Any]) -> None:
    from rich.console import Console

    targets = told["targets"]
    at = (
        "measured" if told["mfu"] is None else f"at {100 * told['mfu']:g} % of {told['peak_tflops']:g} TFLOPS"
    )
    print(
        f"{told['model']}, {told['size']}, {told['steps']} steps of {told['solver']} at guidance {told['guidance_scale']:g}"
    )
    print(f"{told['gpu']}, {at}".replace(", measured, measured", ", measured"))
    Console().print(_stages(told))
    late = told["latency_s"]
    wanted = f"{targets['images_per_hour']:g} an hour that come at random"
    lines = [
        f"one device draws {told['images_per_hour_per_device']:.0f} images an hour: {_verdict(told['meets_throughput'])}",
        f"an image alone takes {told['service_s']:.2f} s: {_verdict(told['meets_latency_alone'])}",
        f"of {wanted}, {targets['percentile']:g} % take at most {late:.2f} s: {_verdict(told['meets_latency'])}"
        if late is not None
        else f"{wanted} are more than it can draw: {_verdict(False)}",
        f"most steps within {targets['latency_s']:g} s and {targets['images_per_hour']:g} an hour: "
        f"{told['steps_that_meet']['alone']} for an image alone, {told['steps_that_meet']['under_load']} at that load",
        f"with the replicas above, each on a device of its own: {told['replicas_latency_s']:.2f} s",
    ]
    if told["cost_per_1000_images"] is not None:
        lines.append(f"1000 images cost {told['cost_per_1000_images']:.4g} of device time")
    print("\n".join(lines))


def _stages(told: Mapping[str, Any]) -> Table:
    from rich.table import Column, Table

    table = Table("stage", *(Column(name, justify="right") for name in ("TFLOP", "seconds", "replicas")))
    for stage in capacity.STAGES:
        table.add_row(
            stage,
            f"{told['stage_tflop'][stage]:.4g}",
            f"{told['stage_s'][stage]:.3g}",
            str(told["replicas"][stage]),
        )
    table.add_row(
        "all",
        f"{told['tflop_per_image']:.4g}",
        f"{told['service_s']:.3g}",
        str(sum(told["replicas"].values())),
    )
    return table


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"
