"""`safelight likelihood`: how well a model explains an image, and how much of that is the prompt's doing."""

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
from safelight.service.cli.arguments import add_model
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import Say, note, progress
from safelight.service.runtime.fast_imports import gc_frozen_imports

if TYPE_CHECKING:
    import numpy as np

    from safelight.pipeline.evaluation.likelihood import Explanation, LikelihoodEstimate

MAX_STEPS, MAX_PROBES = 1000, 1000
EIGHT_BITS = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
)  # of Pillow's modes: what loses nothing as RGB
BAR = 30
STEPS = {"ode": 20, "elbo": 200}
DOING = {"ode": "integrating", "elbo": "adding up"}
NAMED = {"ode": "density", "elbo": "evidence lower bound on the density"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The density of the image's latent (not of its pixels) under the model without guidance, in bits a number, "
        "with the prompt and with the empty one. By the probability-flow ODE (`ode`: exact but for its steps and the spread of "
        "its probes; an evaluation and a gradient a probe, four times a step), or bounded by the discrete evidence lower bound "
        "(`elbo`: an evaluation a step and draw of noise, tighter with more steps)."
    )
    parser.add_argument("image", metavar="IMAGE", help="of a size that the model draws")
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    add_model(parser)
    parser.add_argument("--method", choices=("ode", "elbo"), default="ode", help="default %(default)s")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="of the integral or the bound, 1 to 1000; default 20 for ode, 200 for elbo",
    )
    parser.add_argument(
        "--probes",
        type=int,
        default=4,
        metavar="K",
        help="random probes of the divergence, or draws of noise; default %(default)s",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the probes or the noise; default %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    if args.steps is None:
        args.steps = STEPS[args.method]
    _check_numbers(args)
    model = model_of(settings_of(model=args.model))
    pixels = _read(Path(args.image), model)
    with progress("loading the model") as say:
        found = _explain(args, model, pixels, say)
    if not all(math.isfinite(measured.value) for measured in (found.prompt, found.empty)):
        raise UserError(
            f"{args.steps} steps are too few for this model: the integral is not finite; take more --steps"
        )
    seconds = time.perf_counter() - started
    print(json.dumps(_as_json(args, model, found, seconds)) if args.json else _as_text(args, model, found))
    if found.text.truncated:
        note("the prompt was cut to what the encoder reads")
    if found.text.unknown_words:
        note(f"words that the model does not know: {', '.join(found.text.unknown_words)}")
    return 0


def _explain(args: argparse.Namespace, model: ModelInfo, pixels: np.ndarray, say: Say) -> Explanation:
    with gc_frozen_imports():
        from safelight.pipeline.evaluation.likelihood import build_likelihood
    try:
        likelihood = build_likelihood(model)
    except ValueError as error:  # a checkpoint that cannot be loaded
        raise UserError(str(error)) from None

    def show(share: float) -> None:
        done = round(BAR * share)
        say(f"{DOING[args.method]} {'━' * done}{'╌' * (BAR - done)} {share:.1%}")

    show(0.0)
    return likelihood.explain(
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
        raise UserError("--prompt must not be empty: the empty prompt is what it is compared with")
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


def _read(path: Path, model: ModelInfo) -> np.ndarray:
    """The pixels (H, W, 3) of a file, of a size that the model draws; nothing about them is changed in silence."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(path) as file,
        ):  # Pillow warns of large ones, which are refused here
            image: Image.Image = ImageOps.exif_transpose(file) if file.size in _turned(model) else file
            if image.size not in model.sizes:
                wanted = ", ".join(f"{width}x{height}" for width, height in model.sizes)
                raise UserError(
                    f"{path} is {image.width}x{image.height} pixels, but {model.id} knows {wanted} only; resize it first"
                )
            if image.mode not in EIGHT_BITS:
                raise UserError(
                    f"{path} has pixels of mode {image.mode}; save it with 8 bits a channel first"
                )
            if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise UserError(f"{path} is transparent in places; put it on a background first")
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image") from None
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise UserError(f"{path} is not an image that can be read") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises over damaged files
        raise UserError(f"{path} cannot be read: {error}") from None


def _turned(model: ModelInfo) -> set[tuple[int, int]]:
    """The model's sizes, upright and lying: how a camera may have stored them."""
    return {size for width, height in model.sizes for size in ((width, height), (height, width))}


def _as_text(args: argparse.Namespace, model: ModelInfo, found: Explanation) -> str:
    return "\n".join(
        (
            f"latent of {args.image} under {model.id}, {found.num_dims} numbers;",
            f"{NAMED[args.method]} in bits a number (less is better explained):",
            f"  {_pm(found.prompt, 4)}  with the prompt",
            f"  {_pm(found.empty, 4)}  with the empty prompt",
            f"the prompt explains {_pm(found.gain, 2)} nats",
        )
    )


def _as_json(
    args: argparse.Namespace, model: ModelInfo, found: Explanation, seconds: float
) -> dict[str, object]:
    return {
        "image": args.image,
        "model": model.id,
        "prompt": args.prompt,
        "of": "latent",
        "method": args.method,
        "num_dims": found.num_dims,
        "blur": found.blur,
        "bits_per_dim": _object(found.prompt),
        "bits_per_dim_empty_prompt": _object(found.empty),
        "explained_nats": _object(found.gain),
        "num_steps": args.steps,
        "probes": args.probes,
        "seed": args.seed,
        "prompt_truncated": found.text.truncated,
        "unknown_words": list(found.text.unknown_words),
        "seconds": seconds,
    }


def _object(measured: LikelihoodEstimate) -> dict[str, float | None]:
    return {
        "value": measured.value,
        "standard_error": None if math.isnan(measured.standard_error) else measured.standard_error,
    }


def _pm(measured: LikelihoodEstimate, digits: int) -> str:
    error = "" if math.isnan(measured.standard_error) else f" ± {measured.standard_error:.{digits}f}"
    return f"{measured.value:.{digits}f}{error}"
