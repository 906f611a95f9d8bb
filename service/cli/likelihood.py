"""`safelight likelihood`: how probable an image is under a model, with its prompt and with the empty one."""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import MAX_PROMPT_CHARACTERS, MAX_SEED, ModelInfo
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, model_settings
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import ProgressCallback, note, note_reading, progress
from safelight.service.runtime.fast_imports import gc_frozen_imports

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from safelight.pipeline.evaluation.likelihood import LikelihoodEstimate, LikelihoodReport

MAX_STEPS, MAX_PROBES = 1000, 1000
# Pillow's modes of at most 8 bits a channel, which lose nothing as RGB.
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
BAR_WIDTH = 30
DEFAULT_STEPS = {"ode": 20, "elbo": 200}
ACTIVITY = {"ode": "integrating", "elbo": "adding up"}
QUANTITY = {"ode": "density", "elbo": "evidence lower bound on the density"}
STEPS_HELP = "steps of the integral or the bound, 1 to 1000; default 20 for ode, 200 for elbo"
PROBES_HELP = "random probes of the divergence, or draws of noise; default %(default)s"
SEED_HELP = "seed of the probes or the noise; default %(default)s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The density of the image's latent (not of its pixels) under the model without guidance, in bits per "
        "dimension, with the prompt and with the empty prompt. `ode` integrates the probability-flow ODE: "
        "exact up to the number of steps and the variance of the probes, at four evaluations a step, each "
        "with one gradient for each probe. `elbo` gives the discrete evidence lower bound: one evaluation "
        "for each step and draw of noise, tighter with more steps."
    )
    flag = parser.add_argument
    flag("image", metavar="IMAGE", help="an image file, of a size that the model generates")
    flag("--prompt", required=True, metavar="TEXT", help="the text that describes the image")
    add_model(parser)
    flag("--method", choices=("ode", "elbo"), default="ode", help="default %(default)s")
    flag("--steps", type=int, metavar="N", help=STEPS_HELP)
    flag("--probes", type=int, default=4, metavar="K", help=PROBES_HELP)
    flag("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    flag("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    if args.steps is None:
        args.steps = DEFAULT_STEPS[args.method]
    _check_numbers(args)
    model = model_of(settings_of(**model_settings(args)))
    pixels = _read_pixels(Path(args.image), model)
    with progress("loading the model") as say:
        report = _estimate(args, model, pixels, say)
    if not all(math.isfinite(estimate.value) for estimate in (report.prompt, report.empty)):
        raise UserError(
            f"{args.steps} steps are too few for this model: the integral is not finite; take more --steps"
        )
    seconds = time.perf_counter() - started
    print(json.dumps(_as_json(args, model, report, seconds)) if args.json else _as_text(args, model, report))
    if report.text.truncated:
        note("the prompt was cut to the encoder's maximum length")
    note_reading(report.text.unknown_words, report.text.prompt_syntax, dict(report.text.corrected_words))
    return 0


def _estimate(
    args: argparse.Namespace, model: ModelInfo, pixels: np.ndarray, say: ProgressCallback
) -> LikelihoodReport:
    with gc_frozen_imports():
        from safelight.pipeline.evaluation.likelihood import build_likelihood
    try:
        likelihood = build_likelihood(model)
    except ValueError as error:  # a checkpoint that cannot be loaded
        raise UserError(str(error)) from None

    def show(share: float) -> None:
        filled = round(BAR_WIDTH * share)
        say(f"{ACTIVITY[args.method]} {'━' * filled}{'╌' * (BAR_WIDTH - filled)} {share:.1%}")

    show(0.0)
    return likelihood.estimate(
        pixels,
        args.prompt,
        method=args.method,
        num_steps=args.steps,
        num_probes=args.probes,
        seed=args.seed,
        progress=show,
    )


def _check_numbers(args: argparse.Namespace) -> None:
    if not args.prompt.strip():
        raise UserError("--prompt must not be empty: it is compared with the empty prompt")
    if len(args.prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"--prompt has {len(args.prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are allowed"
        )
    for flag, value, low, high in (
        ("--steps", args.steps, 1, MAX_STEPS),
        ("--probes", args.probes, 1, MAX_PROBES),
        ("--seed", args.seed, 0, MAX_SEED),
    ):
        if not low <= value <= high:
            raise UserError(f"{flag} must be between {low} and {high}, got {value}")


def _read_pixels(path: Path, model: ModelInfo) -> np.ndarray:
    """Read an image of one of the model's sizes as (H, W, 3) uint8; refuse a lossy conversion."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        # Pillow warns of large images, which are refused here.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            image = _checked_image(file, path, model)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise UserError(f"{path} is not an image that can be read") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise UserError(f"{path} cannot be read: {error}") from None


def _checked_image(file: Image.Image, path: Path, model: ModelInfo) -> Image.Image:
    """Turn an image upright; raise `UserError` for a wrong size or pixels that RGB cannot hold."""
    import numpy as np
    from PIL import ImageOps

    image = ImageOps.exif_transpose(file) if file.size in _stored_sizes(model) else file
    if image.size not in model.sizes:
        sizes = ", ".join(f"{width}x{height}" for width, height in model.sizes)
        size = f"{image.width}x{image.height}"
        raise UserError(f"{path} is {size} pixels, but {model.id} generates {sizes} only; resize it first")
    if image.mode not in EIGHT_BIT_MODES:
        raise UserError(f"{path} has pixels of mode {image.mode}; save it with 8 bits a channel first")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise UserError(f"{path} is transparent in places; put it on a background first")
    return image


def _stored_sizes(model: ModelInfo) -> set[tuple[int, int]]:
    """The model's sizes, also turned by 90 degrees, as a camera may have stored them."""
    return {size for width, height in model.sizes for size in ((width, height), (height, width))}


def _as_text(args: argparse.Namespace, model: ModelInfo, report: LikelihoodReport) -> str:
    return "\n".join(
        (
            f"latent of {args.image} under {model.id}, {report.num_dims} dimensions;",
            f"{QUANTITY[args.method]} in bits per dimension (lower is more probable):",
            f"  {_with_error(report.prompt, 4)}  with the prompt",
            f"  {_with_error(report.empty, 4)}  with the empty prompt",
            f"the prompt explains {_with_error(report.gain, 2)} nats",
        )
    )


def _as_json(
    args: argparse.Namespace, model: ModelInfo, report: LikelihoodReport, seconds: float
) -> dict[str, object]:
    return {
        "image": args.image,
        "model": model.id,
        "prompt": args.prompt,
        "of": "latent",
        "method": args.method,
        "num_dims": report.num_dims,
        "blur": report.blur,
        "bits_per_dim": _estimate_as_json(report.prompt),
        "bits_per_dim_empty_prompt": _estimate_as_json(report.empty),
        "explained_nats": _estimate_as_json(report.gain),
        "num_steps": args.steps,
        "probes": args.probes,
        "seed": args.seed,
        "prompt_truncated": report.text.truncated,
        "unknown_words": list(report.text.unknown_words),
        "corrected_words": dict(report.text.corrected_words),
        "seconds": seconds,
    }


def _estimate_as_json(estimate: LikelihoodEstimate) -> dict[str, float | None]:
    return {
        "value": estimate.value,
        "standard_error": None if math.isnan(estimate.standard_error) else estimate.standard_error,
    }


def _with_error(estimate: LikelihoodEstimate, digits: int) -> str:
    error = "" if math.isnan(estimate.standard_error) else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.value:.{digits}f}{error}"
