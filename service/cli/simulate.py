"""`safelight simulate`: a fleet under a day's traffic, with the service's own batching and scaling; and what is full first."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from safelight.pipeline.capacity import predict as capacity
from safelight.pipeline.capacity.fleet.control_plane import control_plane, largest_fleet
from safelight.pipeline.capacity.fleet.gpu_fleet import fleet_of
from safelight.pipeline.capacity.fleet.simulator import Simulator, mean_load
from safelight.pipeline.capacity.fleet.traffic import HIGHEST, SHAPES
from safelight.pipeline.capacity.predict import GPUS, ImageSpec, ModelProfile
from safelight.pipeline.errors import InvalidParams
from safelight.service.cli import UserError
from safelight.service.cli.progress import counter
from safelight.service.runtime.fast_imports import gc_frozen_imports

HOUR = 3600.0
FOLLOWED = 60  # replicas; of a larger fleet each stands for several
HEADS = (
    "GPUs", "an hour", "p50 s", "p95 s", "p99 s", "GPU hours", "most", "used", "resent", "lost", "per 1000",
    "gateways", "ledger", "controller",
)  # fmt: skip
GROWTH = (1, 10, 100, 1000, 10_000)
CONTROL_SECONDS = 5.0
OTHERS = 0.25  # encoders and decoders for each denoiser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Simulates denoisers event by event with the service's own rules of batching and scaling, on a device's predicted cost curve. "
        "Nothing is loaded and nothing drawn. Of more than sixty GPUs sixty are followed, each of which stands for several."
    )
    parser.add_argument(
        "--model",
        default="pixart-sigma",
        metavar="NAME",
        help="a published checkpoint by its name; default %(default)s",
    )
    parser.add_argument(
        "--gpu", default="a100", metavar="NAME", help="a100, h100, h200 or l40s; default %(default)s"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of the peak that is reached; default %(default)g",
    )
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="the most that there may be")
    parser.add_argument(
        "--rate",
        type=float,
        required=True,
        metavar="R",
        help="images an hour that are asked for, on average",
    )
    parser.add_argument(
        "--trace", default="diurnal", metavar="T", help="steady, diurnal or spike; default %(default)s"
    )
    parser.add_argument("--hours", type=float, default=24.0, metavar="H", help="default %(default)g")
    parser.add_argument(
        "--grow", action="store_true", help="1, 10, 100, ... up to --gpus, each with its share of --rate"
    )
    parser.add_argument("--size", metavar="WxH", help="default: the model's native size")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's")
    parser.add_argument(
        "--least",
        type=int,
        default=1,
        metavar="N",
        help="GPUs that are never given back; default %(default)s",
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        default=16,
        metavar="N",
        help="rows of the network in a tick; default %(default)s",
    )
    parser.add_argument(
        "--target-seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="of work that may wait for a replica; default %(default)g",
    )
    parser.add_argument(
        "--start-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="until a new GPU takes images; default %(default)g",
    )
    parser.add_argument(
        "--mean-life-hours",
        type=float,
        default=0.0,
        metavar="H",
        help="of a node; 0: none dies; default %(default)g",
    )
    parser.add_argument(
        "--price-per-hour", type=float, default=0.0, metavar="P", help="of a GPU, in any currency"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    _check(args)
    outline = _outline(args.model)
    size = outline.native_size if args.size is None else _size(args.size)
    order = ImageSpec(
        size, outline.num_steps if args.steps is None else args.steps, outline.guidance_scale, outline.solver
    )
    fleets = [args.gpus] if not args.grow else [gpus for gpus in GROWTH if gpus <= args.gpus]
    told = []
    with counter("simulating", round(args.hours * len(fleets))) as done:
        for number, gpus in enumerate(fleets):
            told.append(_simulate(args, outline, order, gpus, partial(_tell, done, number * args.hours)))
    answer = told[0] if not args.grow else {"fleets": told}
    if args.json:
        print(json.dumps(answer))
    else:
        _print(told)
    return 0


def _tell(done: Callable[[int], None], hours_before: float, now: float) -> None:
    done(round(hours_before + now / HOUR))


def _check(args: argparse.Namespace) -> None:
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


def _outline(name: str) -> ModelProfile:
    with gc_frozen_imports():
        if name not in capacity.list_published():
            raise UserError(
                f"--model must be a published checkpoint by its name: {', '.join(capacity.list_published())}; got {name!r}"
            )
        return capacity.published_profile(name)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise UserError(f"--size must be WIDTHxHEIGHT, got {text!r}")
    return int(found[1]), int(found[2])


def _simulate(
    args: argparse.Namespace,
    outline: ModelProfile,
    order: ImageSpec,
    gpus: int,
    watch: Callable[[float], None],
) -> dict[str, Any]:
    try:
        work = capacity.image_cost(outline, order)
    except InvalidParams as error:
        raise UserError(str(error)) from None
    fleet = fleet_of(
        gpus,
        work,
        args.mfu * GPUS[args.gpu].peak_flops,
        args.max_rows,
        args.least,
        args.target_seconds,
        args.start_seconds,
        args.mean_life_hours * HOUR,
        CONTROL_SECONDS,
    )
    rate = args.rate / HOUR * gpus / args.gpus
    began = time.perf_counter()
    found = Simulator(
        fleet, rate, args.trace, args.hours * HOUR, args.seed, FOLLOWED if gpus > FOLLOWED else 0
    ).run(watch)
    took = time.perf_counter() - began
    [kind] = fleet.kinds
    gpu_hours, most = found.gpu_seconds * found.weight / HOUR, found.most_replicas * found.weight
    latent_bytes = (
        4 * 16 * order.size[0] * order.size[1] // 64
    )  # sixteen channels in float32, an eighth of a side
    highest = rate * HIGHEST[args.trace]
    plane = control_plane(highest, most, OTHERS * most, latent_bytes)
    return {
        "model": outline.name,
        "gpu": GPUS[args.gpu].name,
        "gpus": gpus,
        "rate_per_hour": rate * HOUR,
        "trace": args.trace,
        "hours": args.hours,
        "images": found.images,
        "images_per_hour": found.images / args.hours,
        "alone_s": mean_load(fleet.kinds, fleet.curve) + kind.around,
        "p50_s": _finite(found.percentile(0.50)),
        "p95_s": _finite(found.percentile(0.95)),
        "p99_s": _finite(found.percentile(0.99)),
        "refused": found.refused * found.weight,
        "expired": found.expired * found.weight,
        "resent": found.resent * found.weight,
        "lost": found.lost * found.weight,
        "gpu_hours": gpu_hours,
        "most_replicas": most,
        "utilisation": found.busy_seconds / found.gpu_seconds if found.gpu_seconds else None,
        "cost_per_1000_images": 1000.0 * args.price_per_hour * gpu_hours / found.images
        if args.price_per_hour and found.images
        else None,
        "control_plane": {
            name: {"used": part.used, "share": _finite(part.share)} for name, part in plane.items()
        },
        "full_at_denoisers": dict(largest_fleet(highest / max(most, 1.0), OTHERS, latent_bytes)),
        "followed_replicas": round(gpus / found.weight),
        "simulated_in_s": took,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(told: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    first = told[0]
    print(f"{first['model']} on {first['gpu']}, {first['trace']} traffic over {first['hours']:g} hours")
    print(f"alone an image takes {first['alone_s']:.2f} s")
    table = Table(*(Column(head, justify="right") for head in HEADS))
    for each in told:
        plane = each["control_plane"]
        table.add_row(
            str(each["gpus"]),
            f"{each['images_per_hour']:.0f}",
            *(f"{each[name]:.2f}" if each[name] is not None else "-" for name in ("p50_s", "p95_s", "p99_s")),
            f"{each['gpu_hours']:.0f}",
            f"{each['most_replicas']:.0f}",
            f"{each['utilisation']:.0%}" if each["utilisation"] is not None else "-",
            f"{each['resent']:.0f}",
            f"{each['lost']:.0f}",
            f"{each['cost_per_1000_images']:.3g}" if each["cost_per_1000_images"] is not None else "-",
            f"{plane['gateways']['used']:.1f}",
            f"{plane['ledger']['share']:.0%}",
            f"{plane['controller']['share']:.0%}",
        )
    Console(width=150).print(table)
    full = sorted(told[-1]["full_at_denoisers"].items(), key=lambda item: item[1])
    print("full first: " + ", ".join(f"{name} at {denoisers:.0f} denoisers" for name, denoisers in full))
