"""`safelight eval`: how often a model draws what prompts say, by the nearest clean image."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.pipeline.catalog.model_info import ModelInfo, check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.evaluation.prompts import InvalidPrompts, Prompt, own_sets, read_prompts
from safelight.pipeline.params import GenerationParams
from safelight.service.cli import UserError
from safelight.service.cli.arguments import add_model, add_quantization
from safelight.service.cli.inputs import model_of, settings_of
from safelight.service.cli.progress import counter
from safelight.service.runtime.fast_imports import gc_frozen_imports

if TYPE_CHECKING:
    from safelight.pipeline.evaluation.clip_score import Mean
    from safelight.pipeline.evaluation.nearest_image import Rate

FLAGS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance-scale",
    "solver": "--solver",
    "seed": "--seed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Draws prompts and looks up the nearest clean image of each among those that the model was taught. FILE holds JSON lines with "
        "a prompt and any of concept (an emoji's hexcode, or several of which any is right), style and background. "
        "Without FILE: the sets that come with the model."
    )
    add_model(parser)
    add_quantization(parser)
    parser.add_argument("--prompts", metavar="FILE")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps, 1 to 200")
    parser.add_argument("--guidance-scale", type=float, metavar="W", help="0 to 20; 1 is off")
    parser.add_argument("--solver", metavar="S")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the first image; the next ones count on; default %(default)s",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most so many prompts of each set")
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="keep the images there; drawn again they are taken from there, so a run can be resumed",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    settings = settings_of(model=args.model, quantization=args.quantization)
    model = model_of(settings)
    sets = _sets(args, model)
    images = {name: _images(args, model, prompts) for name, prompts in sets.items()}
    rates = _measure(args, model, settings.quantization, sets, images)
    first = next(iter(images.values()))[0]
    found = {
        "model": model.id,
        "num_inference_steps": first.num_steps,
        "guidance_scale": first.guidance_scale,
        "solver": first.solver,
        "seed": args.seed,
        "quantization": settings.quantization,
        "sets": {
            name: {"prompts": len(sets[name]), **{n: r.as_dict() for n, r in of.items()}}
            for name, of in rates.items()
        },
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(found) if args.json else _as_text(found, rates))
    return 0


def _sets(args: argparse.Namespace, model: ModelInfo) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of the file, or every set that comes with the model; at most --limit of each."""
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be at least 1, got {args.limit}")
    try:
        sets = (
            {Path(args.prompts).stem: read_prompts(Path(args.prompts))}
            if args.prompts
            else own_sets(model.path)
        )
    except InvalidPrompts as error:
        raise UserError(str(error)) from None
    if not sets:
        raise UserError(f"{model.id} brings no prompts of its own; give some with --prompts FILE")
    return {name: prompts[: args.limit] for name, prompts in sets.items()}


def _images(args: argparse.Namespace, model: ModelInfo, prompts: Sequence[Prompt]) -> list[GenerationParams]:
    width, height = model.native_size
    images = [
        GenerationParams(
            prompt=prompt.text,
            negative_prompt="",
            width=width,
            height=height,
            num_steps=model.num_steps if args.steps is None else args.steps,
            guidance_scale=model.guidance_scale if args.guidance_scale is None else args.guidance_scale,
            solver=args.solver or model.solver,
            seed=args.seed + number,
        )
        for number, prompt in enumerate(prompts)
    ]
    try:
        for params in images:
            check_params(params, model)
        plan_request(images[0], model)
    except InvalidParams as error:
        raise UserError(str(error).replace(error.param, FLAGS.get(error.param, error.param), 1)) from None
    return images


def _measure(
    args: argparse.Namespace,
    model: ModelInfo,
    quantization: str,
    sets: Mapping[str, Sequence[Prompt]],
    images: Mapping[str, Sequence[GenerationParams]],
) -> dict[str, dict[str, Rate | Mean]]:
    if args.keep is not None and not Path(args.keep).is_dir():
        raise UserError(f"there is no folder {args.keep}")
    with gc_frozen_imports():
        from safelight.pipeline.evaluation.clip_score import clip_scores, load_scorer
        from safelight.pipeline.evaluation.nearest_image import check, judge, load_gallery
        from safelight.pipeline.evaluation.renderer import Renderer
    try:
        gallery = load_gallery(model)
        for prompts in sets.values():
            check(gallery, prompts)
        scorer = load_scorer(model)
        renderer = Renderer(model, Path(args.keep) if args.keep else None, quantization)
    except (
        ValueError
    ) as error:  # no gallery, prompts that it does not know, a checkpoint that cannot be loaded
        raise UserError(str(error)) from None
    found: dict[str, dict[str, Rate | Mean]] = {}
    for name, prompts in sets.items():
        with counter(name, len(prompts)) as done:
            drawn = renderer.draw(images[name], done)
        found[name] = {
            **judge(gallery, prompts, drawn),
            **(clip_scores(scorer, gallery, prompts, drawn) if scorer else {}),
        }
    return found


def _as_text(found: Mapping[str, object], figures: Mapping[str, Mapping[str, Rate | Mean]]) -> str:
    lines = [
        f"{found['model']}: {found['num_inference_steps']} steps, guidance {found['guidance_scale']:g}, {found['solver']}"
    ]
    for name, of in figures.items():
        lines.append(f"{name}:")
        lines += [f"  {figure:<20} {value.as_text()}" for figure, value in of.items()]
    return "\n".join(lines)
