"""Stage `rate`: rate a checkpoint in training on a few prompts, at every size, without exporting it.

The checkpoint becomes a folder of links in `work/rated`, which `safelight eval --model` takes too. The rates
are added to `work/rates.jsonl`, one line a run, so that they show how training goes.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from safelight.models.checkpoints.writer import write_index, write_part
from safelight.models.evaluation.gallery import ENTRIES_FILE, IMAGES_FILE, Gallery
from safelight.models.recipes.emoji import data, dit, prompts, text, turbo, views
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.schedule import SCHEDULER
from safelight.models.recipes.emoji.sheets import default_request
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.nearest_image import rate_images
from safelight.pipeline.evaluation.prompts import PROMPTS_FOLDER, Prompt, write_prompts
from safelight.pipeline.evaluation.renderer import Renderer
from safelight.pipeline.params import GenerationParams

SETS = ("names", "styled", "natural", "keywords")
TURBO_SOLVER = "ddim"  # on a flow, Euler's steps


@dataclass(frozen=True, slots=True)
class RatingOptions:
    """How many prompts of each set, at which sizes, and of which checkpoint: the base's or the student's."""

    limit: int
    native_only: bool = False
    is_turbo: bool = False

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        return (views.NATIVE,) if self.native_only else (views.NATIVE, *views.OTHERS)

    @property
    def num_steps(self) -> int:
        return turbo.EVALUATIONS if self.is_turbo else 10


def run(work: Path, weights: Path, options: RatingOptions) -> None:
    """Rate `dit.latest`, or the student; `weights` holds the gallery."""
    checkpoint = work / turbo.CHECKPOINT if options.is_turbo else dit.latest(work)
    folder = work / "rated"
    step = write_folder(work, checkpoint, weights, folder)
    model = replace(find_model(str(folder)), sizes=options.sizes)
    gallery, renderer = Gallery.load(weights), Renderer(model)
    rates: dict[str, dict[str, float]] = {}
    for width, height in options.sizes:
        for name, of_set in _sets(work, options.limit).items():
            requests = [
                replace(_request(prompt, i, model, options), width=width, height=height)
                for i, prompt in enumerate(of_set)
            ]
            top1 = rate_images(gallery, of_set, renderer.render(requests))["concept_top1"]
            rates[f"{name} {width}x{height}"] = top1.as_dict()
            print(f"rate: {name:9} {width}x{height} {top1.as_text()}", flush=True)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "checkpoint": checkpoint.name,
        "step": step,
        "num_inference_steps": options.num_steps,
        "rates": rates,
    }
    with (work / "rates.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def write_folder(work: Path, checkpoint: Path, weights: Path, folder: Path) -> int:
    """Write a servable `folder` of a DiT's `checkpoint`, with links to all else; return its step."""
    folder.mkdir(exist_ok=True)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    trained = {name.removeprefix("dit."): tensor.bfloat16() for name, tensor in state["module"].items()}
    write_part(folder / "transformer", dit.CONFIG.to_diffusers(), trained)
    links = {
        "text_encoder": text.tower_folder(work),
        "vae": work / "vae",
        **{name: weights / name for name in (ENTRIES_FILE, IMAGES_FILE)},
    }
    for name, target in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.resolve())
    for name, of_set in _sets(work, limit=None).items():
        write_prompts(folder / PROMPTS_FOLDER / f"{name}.jsonl", of_set)
    write_index(folder, SCHEDULER)
    return int(state["step"])


def _sets(work: Path, limit: int | None) -> dict[str, list[Prompt]]:
    sets = prompts.make_sets(data.load(work).images)
    return {name: sets[name][:limit] for name in SETS}


def _request(prompt: Prompt, index: int, model: ModelInfo, options: RatingOptions) -> GenerationParams:
    params = replace(default_request(prompt.text, SEED + index, model), num_steps=options.num_steps)
    return replace(params, guidance_scale=1.0, solver=TURBO_SOLVER) if options.is_turbo else params
