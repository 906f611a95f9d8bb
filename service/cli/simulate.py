"""`safelight simulate`: a fleet under a day's traffic, and which component saturates first as it grows.

With `--compare`, policies of scheduling instead (`simulate_compare`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from safelight.pipeline.capacity.devices import GPUS
from safelight.pipeline.capacity.fleet.control_plane import control_plane, largest_fleet
from safelight.pipeline.capacity.fleet.fleet import Fleet, mean_denoise_seconds
from safelight.pipeline.capacity.fleet.gpu_fleet import gpu_fleet
from safelight.pipeline.capacity.fleet.simulator import SimulationResult, Simulator
from safelight.pipeline.capacity.fleet.traffic import PEAKS, SHAPES
from safelight.pipeline.capacity.image_cost import ImageCost, ImageSpec, ModelProfile, image_cost
from safelight.pipeline.capacity.model_profiles import list_published, published_profile
from safelight.pipeline.capacity.predict import HOUR
from safelight.pipeline.errors import InvalidParams
from safelight.service.cli import UserError, simulate_compare
from safelight.service.cli.progress import counter
from safelight.service.cli.simulate_report import as_text
from safelight.service.errors import as_invalid_request
from safelight.service.runtime.fast_imports import gc_frozen_imports

FOLLOWED_REPLICAS = 60  # simulated one by one; in a larger fleet each of them stands for several
GROWTH = (1, 10, 100, 1000, 10_000)
SCALING_INTERVAL_SECONDS = 5.0
OTHER_REPLICAS_PER_DENOISER = 0.25  # encoders and decoders
LATENT_CHANNELS, LATENT_SCALE, FLOAT32_BYTES = 16, 8, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulates a fleet of denoisers event by event, with the service's own batching and autoscaling "
        "on the predicted cost curve of a GPU. No weights are loaded and no images drawn. In a fleet of more "
        "than sixty GPUs sixty are simulated, each of which stands for several. With --compare, scheduling "
        "policies are compared instead."
    )
    _add_image_arguments(parser)
    _add_gpu_arguments(parser)
    _add_traffic_arguments(parser)
    _add_fleet_arguments(parser)
    simulate_compare.add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed; default %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def _add_image_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and image")
    group.add_argument(
        "--model",
        default="pixart-sigma",
        metavar="NAME",
        help="the name of a published checkpoint; default %(default)s",
    )
    group.add_argument("--size", metavar="WxH", help="image size in pixels; default: the model's native size")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps; default: the model's")


def _add_gpu_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("GPU")
    group.add_argument(
        "--gpu", default="a100", metavar="NAME", help="a100, h100, h200 or l40s; default %(default)s"
    )
    group.add_argument(
        "--mfu",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the peak that is reached, 0 to 1; default %(default)g",
    )
    group.add_argument(
        "--price-per-hour",
        type=float,
        default=0.0,
        metavar="P",
        help="price of a GPU for an hour, in any currency; adds the cost of 1000 images",
    )


def _add_traffic_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("traffic")
    group.add_argument("--rate", type=float, metavar="R", help="mean number of images requested an hour")
    group.add_argument(
        "--trace",
        default="diurnal",
        metavar="T",
        help="how the rate changes over time: steady, diurnal or spike; default %(default)s",
    )
    group.add_argument(
        "--hours", type=float, default=24.0, metavar="H", help="hours to simulate; default %(default)g"
    )


def _add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fleet")
    group.add_argument("--gpus", type=int, metavar="N", help="most GPUs in the fleet")
    group.add_argument(
        "--grow",
        action="store_true",
        help="simulate fleets of 1, 10, 100, ... up to --gpus GPUs, each with its share of --rate",
    )
    group.add_argument(
        "--least", type=int, default=1, metavar="N", help="fewest GPUs in the fleet; default %(default)s"
    )
    group.add_argument(
        "--max-rows",
        type=int,
        default=16,
        metavar="N",
        help="most rows of the network in a tick; default %(default)s",
    )
    group.add_argument(
        "--target-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds of queued work for each GPU beyond which GPUs are added; default %(default)g",
    )
    group.add_argument(
        "--start-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds until a new GPU takes images; default %(default)g",
    )
    group.add_argument(
        "--mean-life-hours",
        type=float,
        default=0.0,
        metavar="H",
        help="mean hours until a node fails; 0: no node fails; default %(default)g",
    )


def run(args: argparse.Namespace) -> int:
    if args.compare is not None:
        return simulate_compare.run(args)
    _check(args)
    profile = _find_profile(args.model)
    spec = _image_spec(args, profile)
    try:
        cost = image_cost(profile, spec)
    except InvalidParams as error:
        raise UserError(str(as_invalid_request(error))) from None
    fleet_sizes = [gpus for gpus in GROWTH if gpus <= args.gpus] if args.grow else [args.gpus]
    reports = []
    with counter("simulating", round(args.hours * len(fleet_sizes))) as show_hours:
        for number, gpus in enumerate(fleet_sizes):
            on_progress = partial(_show_progress, show_hours, number * args.hours)
            reports.append(_simulate(args, profile, spec, cost, gpus, on_progress))
    if args.json:
        print(json.dumps({"fleets": reports} if args.grow else reports[0]))
    else:
        print(as_text(reports))
    return 0


def _show_progress(show_hours: Callable[[int], None], hours_before: float, seconds: float) -> None:
    show_hours(round(hours_before + seconds / HOUR))


def _check(args: argparse.Namespace) -> None:
    for name in ("rate", "gpus"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is needed, unless --compare is given")
    if args.gpu not in GPUS:
        raise UserError(f"--gpu must be one of {', '.join(GPUS)}, got {args.gpu!r}")
    if args.trace not in SHAPES:
        raise UserError(f"--trace must be one of {', '.join(SHAPES)}, got {args.trace!r}")
    if not 1 <= args.gpus <= 100_000:
        raise UserError(f"--gpus must be between 1 and 100000, got {args.gpus}")
    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu must be more than 0 and at most 1, got {args.mfu}")
    if not 2 <= args.max_rows <= 4096:
        raise UserError(
            f"--max-rows must be between 2, the rows of one guided image, and 4096; got {args.max_rows}"
        )
    if not 0 <= args.least <= args.gpus:
        raise UserError(f"--least must be between 0 and --gpus, got {args.least}")
    for name in ("rate", "hours", "start_seconds", "target_seconds"):
        if not 0 < getattr(args, name) < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')} must be more than 0 and finite, got {getattr(args, name)}"
            )
    for name in ("mean_life_hours", "price_per_hour"):
        if not 0 <= (getattr(args, name) or 0) < math.inf:
            raise UserError(
                f"--{name.replace('_', '-')} must be at least 0 and finite, got {getattr(args, name)}"
            )


def _find_profile(name: str) -> ModelProfile:
    with gc_frozen_imports():
        if name not in list_published():
            raise UserError(
                "--model must be a published checkpoint by its name: "
                f"{', '.join(list_published())}; got {name!r}"
            )
        return published_profile(name)


def _image_spec(args: argparse.Namespace, profile: ModelProfile) -> ImageSpec:
    size = profile.native_size
    if args.size is not None:
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", args.size)
        if match is None:
            raise UserError(f"--size must be WIDTHxHEIGHT, got {args.size!r}")
        size = int(match[1]), int(match[2])
    num_steps = profile.num_steps if args.steps is None else args.steps
    return ImageSpec(size, num_steps, profile.guidance_scale, profile.solver)


def _simulate(
    args: argparse.Namespace,
    profile: ModelProfile,
    spec: ImageSpec,
    cost: ImageCost,
    gpus: int,
    on_progress: Callable[[float], None],
) -> dict[str, Any]:
    """Simulate one fleet with its share of `--rate`.

    Args:
        args: The command's flags.
        profile: The model's profile.
        spec: The image.
        cost: Its cost.
        gpus: Most GPUs in the fleet.
        on_progress: Called with the simulated seconds so far.

    Returns:
        The report of the fleet, with the keys of `--json`.
    """
    fleet = _make_fleet(args, cost, gpus)
    rate = args.rate / HOUR * gpus / args.gpus
    followed = FOLLOWED_REPLICAS if gpus > FOLLOWED_REPLICAS else 0
    simulator = Simulator(fleet, rate, args.trace, args.hours * HOUR, args.seed, followed)
    started_at = time.perf_counter()
    result = simulator.run(on_progress)
    wall_seconds = time.perf_counter() - started_at
    return {
        "model": profile.name,
        "gpu": GPUS[args.gpu].name,
        "gpus": gpus,
        "rate_per_hour": rate * HOUR,
        "trace": args.trace,
        "hours": args.hours,
        **_describe_result(fleet, result, args.hours, args.price_per_hour),
        **_describe_control_plane(result, rate * PEAKS[args.trace], spec.size),
        "followed_replicas": round(gpus / result.weight),
        "simulated_in_s": wall_seconds,
    }


def _make_fleet(args: argparse.Namespace, cost: ImageCost, gpus: int) -> Fleet:
    return gpu_fleet(
        gpus,
        cost,
        args.mfu * GPUS[args.gpu].peak_flops,
        max_rows=args.max_rows,
        min_gpus=args.least,
        target_seconds=args.target_seconds,
        startup_seconds=args.start_seconds,
        node_mtbf_seconds=args.mean_life_hours * HOUR,
        scaling_interval_seconds=SCALING_INTERVAL_SECONDS,
    )


def _describe_result(
    fleet: Fleet, result: SimulationResult, hours: float, price_per_hour: float
) -> dict[str, Any]:
    """Throughput, latency, losses, utilisation and cost, scaled up to the whole fleet."""
    [requests] = fleet.request_classes
    gpu_hours = result.gpu_seconds * result.weight / HOUR
    has_cost = price_per_hour and result.images
    return {
        "images": result.images,
        "images_per_hour": result.images / hours,
        "alone_s": mean_denoise_seconds(fleet.request_classes, fleet.curve) + requests.other_stage_seconds,
        "p50_s": _finite(result.percentile(0.50)),
        "p95_s": _finite(result.percentile(0.95)),
        "p99_s": _finite(result.percentile(0.99)),
        "refused": result.refused * result.weight,
        "expired": result.expired * result.weight,
        "resent": result.resent * result.weight,
        "lost": result.lost * result.weight,
        "gpu_hours": gpu_hours,
        "most_replicas": result.max_replicas * result.weight,
        "utilisation": result.busy_seconds / result.gpu_seconds if result.gpu_seconds else None,
        "cost_per_1000_images": 1000.0 * price_per_hour * gpu_hours / result.images if has_cost else None,
    }


def _describe_control_plane(
    result: SimulationResult, peak_rate: float, size: tuple[int, int]
) -> dict[str, Any]:
    """The load of the control plane at the highest rate, and the fleet at which each component saturates."""
    denoisers = result.max_replicas * result.weight
    latent_pixels = size[0] * size[1] // LATENT_SCALE**2
    latent_bytes = FLOAT32_BYTES * LATENT_CHANNELS * latent_pixels
    components = control_plane(peak_rate, denoisers, OTHER_REPLICAS_PER_DENOISER * denoisers, latent_bytes)
    saturation = largest_fleet(peak_rate / max(denoisers, 1.0), OTHER_REPLICAS_PER_DENOISER, latent_bytes)
    return {
        "control_plane": {
            name: {"used": component.used, "share": _finite(component.utilisation)}
            for name, component in components.items()
        },
        "full_at_denoisers": dict(saturation),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
