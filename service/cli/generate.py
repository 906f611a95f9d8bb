"""`safelight generate`: draws images with the service's stages in this process.

The same request gives the same bytes as the service does.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import GenerationParams
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, add_served_name, model_settings
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import ProgressCallback, note_reading, progress
from safelight.service.errors import ServiceError, as_invalid_request
from safelight.service.http.edits.params import (
    INPAINTING_STRENGTH,
    STRENGTH,
    make_edits,
    make_upload,
    with_source_size,
)
from safelight.service.http.schemas import ImageRequest
from safelight.service.http.translation import make_output, make_params, make_usage
from safelight.service.http.validation import parse_request
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import DecodeResult, ImageFormat, Upload
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.runtime.output_files import CannotWrite, check_writable, write_file
from safelight.service.settings import Settings

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
# The flag of each request field.
FLAGS = {
    "prompt": "PROMPT",
    "negative_prompt": "--negative-prompt",
    "size": "--size",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "solver": "--solver",
    "timestep_spacing": "--timestep-spacing",
    "eta": "--eta",
    "guidance_interval": "--guidance-interval",
    "guidance_stride": "--guidance-stride",
    "guidance_rescale": "--guidance-rescale",
    "seed": "--seed",
    "n": "-n",
    "image": "--image",
    "mask": "--mask",
    "strength": "--strength",
}
POLL_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what the image should not show")
    add_model(parser)
    add_served_name(parser)
    _add_edit_arguments(parser.add_argument_group("editing"))
    _add_sampling_arguments(parser.add_argument_group("sampling"))
    _add_guidance_arguments(parser.add_argument_group("guidance"))
    _add_output_arguments(parser.add_argument_group("output"))


def _add_edit_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", metavar="FILE", help="a PNG, JPEG or WebP file to start from")
    group.add_argument(
        "--mask",
        metavar="FILE",
        help="a file of the same size: only what is transparent in it is redrawn, or else what is white",
    )
    group.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help=f"share of the steps that are taken, 0 to 1; default {STRENGTH:g}, with --mask "
        f"{INPAINTING_STRENGTH:g}",
    )


def _add_sampling_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--size", metavar="WxH", help="image size in pixels; default: the model's native size")
    group.add_argument(
        "--steps", type=int, metavar="N", help="denoising steps, 1 to 200; default: the model's"
    )
    group.add_argument("--solver", metavar="NAME", help="one of `safelight solvers`; default: the model's")
    group.add_argument(
        "--timestep-spacing", metavar="NAME", help="how the steps are spaced in time; default: the model's"
    )
    group.add_argument(
        "--eta", type=float, metavar="E", help="0 to 1, with --solver ddim: its share of fresh noise"
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help="seed of the noise; default: random, and reported"
    )


def _add_guidance_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--guidance-scale", type=float, metavar="W", help="0 to 20; up to 1 is off; default: the model's"
    )
    group.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("START", "END"),
        help="times, from 0 (data) to 1 (noise), between which guidance is on; default 0 1",
    )
    group.add_argument(
        "--guidance-stride",
        type=int,
        metavar="N",
        help="evaluate both predictions at every Nth guided step only; default 1",
    )
    group.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="PHI",
        help="0 to 1: how far to rescale a guided prediction to the conditional one; default 0",
    )


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-n",
        type=int,
        metavar="N",
        help="number of images, 1 to 10; several are written with -0, -1, ... before the suffix of PATH",
    )
    group.add_argument(
        "-o",
        "--output",
        default="picture.png",
        metavar="PATH",
        help="file to write, with the suffix .png, .webp, .jpg or .jpeg; default %(default)s",
    )
    group.add_argument(
        "--json", action="store_true", help="one JSON object on stdout: the images and their usage"
    )


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    settings = settings_of(**model_settings(args))
    output_format = _format_of(Path(args.output))
    model = model_of(settings)
    params, output, upload = _parse_arguments(args, model, output_format)
    paths = _output_paths(Path(args.output), len(params))
    with progress("loading the model") as report_progress:
        results = asyncio.run(_draw(model, settings, params, output, upload, report_progress))
    _write(paths, results)
    params = with_source_size(params, results)
    usage = make_usage(results, params, model, time.perf_counter() - started)
    if args.json:
        images = [
            {"path": str(path), "seed": image.seed, "width": image.width, "height": image.height}
            for path, image in zip(paths, params, strict=True)
        ]
        print(json.dumps({"images": images, "usage": usage.model_dump()}))
    else:
        print(f"{', '.join(map(str, paths))}: seed {params[0].seed}, {usage.safelight.seconds:.1f} s")
    cost = usage.safelight
    note_reading(cost.unknown_words, cost.prompt_syntax, cost.corrected_words)
    return 0


def _parse_arguments(
    args: argparse.Namespace, model: ModelInfo, output_format: str
) -> tuple[list[GenerationParams], ImageFormat, Upload | None]:
    """The arguments as a request, validated by the rules of the service. Raises `UserError`."""
    fields = {
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt,
        "size": args.size,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "solver": args.solver,
        "timestep_spacing": args.timestep_spacing,
        "eta": args.eta,
        "guidance_interval": args.guidance_interval,
        "guidance_stride": args.guidance_stride,
        "guidance_rescale": args.guidance_rescale,
        "seed": args.seed,
        "n": args.n,
        "output_format": output_format,
    }
    try:
        request: ImageRequest = parse_request(json.dumps(fields).encode())
        params, output = make_params(request, model), make_output(request)
        if args.image is None:
            _refuse_without_image(args)
            return params, output, None
        params = make_edits(params, model, args.strength, args.mask is not None, is_strict=True)
        mask = None if args.mask is None else _read_file(args.mask)
        return params, output, make_upload(_read_file(args.image), mask, request, model, params[0])
    except (ServiceError, InvalidParams) as error:
        raise UserError(_with_flag(error)) from None


def _refuse_without_image(args: argparse.Namespace) -> None:
    """Raise `UserError` for an option that needs an image."""
    for name in ("mask", "strength"):
        if getattr(args, name) is not None:
            raise UserError(f"{FLAGS[name]} is for editing an image: give it one with --image")


def _read_file(path: str) -> bytes:
    """The bytes of a file. Raises `UserError`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _with_flag(error: Exception) -> str:
    """The error's sentence with the flag in place of the request's field."""
    if isinstance(error, InvalidParams):
        error = as_invalid_request(error)
    param = getattr(error, "param", None) or ""
    return str(error).replace(param, FLAGS.get(param, param), 1)


async def _draw(
    model: ModelInfo,
    settings: Settings,
    images: Sequence[GenerationParams],
    output: ImageFormat,
    upload: Upload | None,
    report_progress: ProgressCallback,
) -> list[DecodeResult]:
    """Generate the images.

    Args:
        model: The model that draws them.
        settings: The service's settings.
        images: The parameters of each image.
        output: The images' file format.
        upload: What they are edits of.
        report_progress: Shows one line of text.

    Raises:
        UserError: The model cannot be loaded, or an image cannot be drawn.
    """
    pipeline = InProcessPipeline(model, settings)
    watcher = asyncio.ensure_future(_watch(pipeline, report_progress))
    try:
        pipeline.wait()
        return await pipeline.generate_all(images, output, upload)
    except (
        ServiceError,
        InvalidParams,
        ValueError,
    ) as error:  # ValueError: a checkpoint that cannot be loaded
        raise UserError(_with_flag(error)) from None
    finally:
        await cancel_and_wait(watcher)
        pipeline.close()


async def _watch(pipeline: InProcessPipeline, report_progress: ProgressCallback) -> None:
    while True:
        report_progress(f"drawing, tick {pipeline.denoiser.status().ticks}")
        await asyncio.sleep(POLL_SECONDS)


def _format_of(path: Path) -> str:
    """The image format that the suffix of `path` selects. Raises `UserError`."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"the suffix of PATH selects the format: {', '.join(FORMATS)}; got {path.name!r}")
    return FORMATS[path.suffix.lower()]


def _output_paths(path: Path, count: int) -> list[Path]:
    """The files of `count` images: `path`, or several with their indices before its suffix.

    Raises `UserError` for one that cannot be written, before anything is drawn.
    """
    paths = [path] if count == 1 else [path.with_stem(f"{path.stem}-{index}") for index in range(count)]
    try:
        for image_path in paths:
            check_writable(image_path)
    except CannotWrite as error:
        raise UserError(str(error)) from None
    return paths


def _write(paths: Sequence[Path], results: Sequence[DecodeResult]) -> None:
    """Write each image. Raises `UserError`."""
    try:
        for path, result in zip(paths, results, strict=True):
            write_file(path, result.image)
    except CannotWrite as error:
        raise UserError(str(error)) from None
