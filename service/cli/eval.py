"""`safelight eval`: how often images match their prompts, by the nearest clean image and by CLIP score."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import ModelInfo, applied_guidance_scale, check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.evaluation.prompts import InvalidPrompts, Prompt, read_prompt_sets, read_prompts
from safelight.pipeline.params import GenerationParams
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, add_quantization, model_settings
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import counter
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.runtime.output_files import CannotWrite, check_writable

if TYPE_CHECKING:
    from safelight.pipeline.evaluation.clip_score import Mean
    from safelight.pipeline.evaluation.nearest_image import Rate

FLAGS = {
    "num_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "solver": "--solver",
    "seed": "--seed",
}
SEED_HELP = "seed of the first image; each next image has the next seed; default %(default)s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Generates an image for each prompt and finds its nearest clean image among the model's training "
        "images. FILE holds JSON lines with a prompt and any of concept (an emoji's hexcode, or a list of "
        "accepted ones), style and background. Without FILE: the prompt sets that come with the model."
    )
    add_model(parser)
    add_quantization(parser)
    flag = parser.add_argument
    flag("--prompts", metavar="FILE", help="a file of prompts, as above")
    flag("--steps", type=int, metavar="N", help="denoising steps, 1 to 200; default the model's")
    flag("--guidance-scale", type=float, metavar="W", help="0 to 20; up to 1 is off; default the model's")
    flag("--solver", metavar="S", help="default the model's")
    flag("--seed", type=int, default=0, metavar="N", help=SEED_HELP)
    flag("--limit", type=int, metavar="N", help="use at most N prompts of each set")
    flag(
        "--keep", metavar="DIR", help="keep the images in DIR and reuse those that are there, to resume a run"
    )
    flag("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    settings = settings_of(**model_settings(args), quantization=args.quantization)
    model = model_of(settings)
    sets = _sets(args, model)
    requests = {name: _requests(args, model, prompts) for name, prompts in sets.items()}
    results = _evaluate(args, model, settings.quantization, sets, requests)
    first = next(iter(requests.values()))[0]
    report = {
        "model": model.id,
        "num_inference_steps": first.num_steps,
        "guidance_scale": first.guidance_scale,
        "solver": first.solver,
        "seed": args.seed,
        "quantization": settings.quantization,
        "sets": {
            name: {"prompts": len(sets[name]), **{key: value.as_dict() for key, value in values.items()}}
            for name, values in results.items()
        },
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(report) if args.json else _as_text(report, results))
    return 0


def _sets(args: argparse.Namespace, model: ModelInfo) -> dict[str, tuple[Prompt, ...]]:
    """Read the prompts of the file, or every set that comes with the model; at most --limit of each."""
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be at least 1, got {args.limit}")
    try:
        sets = (
            {Path(args.prompts).stem: read_prompts(Path(args.prompts))}
            if args.prompts
            else read_prompt_sets(model.path)
        )
    except InvalidPrompts as error:
        raise UserError(str(error)) from None
    if not sets:
        raise UserError(f"{model.id} brings no prompts of its own; give some with --prompts FILE")
    return {name: prompts[: args.limit] for name, prompts in sets.items()}


def _requests(
    args: argparse.Namespace, model: ModelInfo, prompts: Sequence[Prompt]
) -> list[GenerationParams]:
    """One validated request for each prompt. Raises `UserError` that names the flag at fault."""
    width, height = model.default_size
    requests = [
        GenerationParams(
            prompt=prompt.text,
            negative_prompt="",
            width=width,
            height=height,
            num_steps=model.num_steps if args.steps is None else args.steps,
            guidance_scale=applied_guidance_scale(
                model.guidance_scale if args.guidance_scale is None else args.guidance_scale
            ),
            solver=args.solver or model.solver,
            seed=args.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]
    try:
        for params in requests:
            check_params(params, model)
        plan_request(requests[0], model)
    except InvalidParams as error:
        raise UserError(str(error).replace(error.param, FLAGS.get(error.param, error.param), 1)) from None
    return requests


def _evaluate(
    args: argparse.Namespace,
    model: ModelInfo,
    quantization: str,
    sets: Mapping[str, Sequence[Prompt]],
    requests: Mapping[str, Sequence[GenerationParams]],
) -> dict[str, dict[str, Rate | Mean]]:
    """Render every set and rate its images.

    Args:
        args: the command's flags.
        model: the model under test.
        quantization: of the denoiser's large layers.
        sets: the prompts of each set, by name.
        requests: one request for each prompt, by set.

    Returns:
        The rates and mean scores of each set, by name.
    """
    _check_folder(args.keep)
    with gc_frozen_imports():
        from safelight.pipeline.evaluation.clip_score import clip_scores, load_scorer
        from safelight.pipeline.evaluation.nearest_image import check_prompts, load_gallery, rate_images
        from safelight.pipeline.evaluation.renderer import Renderer
    try:
        gallery = load_gallery(model)
        for prompts in sets.values():
            check_prompts(gallery, prompts)
        scorer = load_scorer(model)
        renderer = Renderer(model, Path(args.keep) if args.keep else None, quantization)
    # No gallery, a concept that is not in it, or a checkpoint that cannot be loaded.
    except ValueError as error:
        raise UserError(str(error)) from None
    results: dict[str, dict[str, Rate | Mean]] = {}
    for name, prompts in sets.items():
        with counter(name, len(prompts)) as show_count:
            images = renderer.render(requests[name], show_count)
        scores = clip_scores(scorer, gallery, prompts, images) if scorer else {}
        results[name] = {**rate_images(gallery, prompts, images), **scores}
    return results


def _check_folder(folder: str | None) -> None:
    """Raise `UserError` unless images can be kept in `folder`."""
    if folder is None:
        return
    try:
        check_writable(Path(folder) / "image.png")
    except CannotWrite as error:
        raise UserError(str(error)) from None


def _as_text(report: Mapping[str, object], results: Mapping[str, Mapping[str, Rate | Mean]]) -> str:
    steps, guidance = report["num_inference_steps"], report["guidance_scale"]
    lines = [f"{report['model']}: {steps} steps, guidance {guidance:g}, {report['solver']}"]
    for name, values in results.items():
        lines.append(f"{name}:")
        lines += [f"  {key:<20} {value.as_text()}" for key, value in values.items()]
    return "\n".join(lines)
