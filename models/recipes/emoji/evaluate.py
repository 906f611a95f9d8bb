"""Stage `evaluate`: rate the exported model on its prompt sets, and render the contact sheets."""

import json
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress, TaskID

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji import card, sheets
from safelight.models.recipes.emoji.sheets import default_request
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.clip_score import Mean, clip_scores, load_scorer
from safelight.pipeline.evaluation.detail import detail_scores
from safelight.pipeline.evaluation.nearest_image import Rate, rate_images
from safelight.pipeline.evaluation.prompts import read_prompt_sets
from safelight.pipeline.evaluation.renderer import Renderer

SEED = 0


TURBO = "emoji-128-turbo"


def run(work: Path, weights: Path, limit: int, is_turbo: bool = False) -> None:
    """Rate at most `limit` prompts of every set and render the sheets, of the base or of the student.

    Writes `weights/evaluation.json`, `docs/contact-sheet.webp` and, of the base, `docs/common-things.webp`;
    of the student, the first two with `-turbo` in their names.
    Images are kept in `work/drawn`, so that an interrupted run can resume.
    """
    model = replace(find_model(TURBO), path=weights) if is_turbo else find_model(str(weights))
    gallery, suffix = Gallery.load(weights), "-turbo" if is_turbo else ""
    folder = work / "drawn"
    folder.mkdir(exist_ok=True)
    renderer = Renderer(model, folder)
    sheets.draw_contact_sheet(renderer, model, gallery, Path(f"docs/contact-sheet{suffix}.webp"))
    if not is_turbo:
        sheets.draw_common_things(renderer, model, Path("docs/common-things.webp"))
    scorer = load_scorer(model)
    sets = {}
    for name, full_set in read_prompt_sets(weights).items():
        prompts = full_set[:limit]
        with Progress() as bar:
            task = bar.add_task(name, total=len(prompts))
            requests = [default_request(prompt.text, SEED + i, model) for i, prompt in enumerate(prompts)]

            def report_progress(num: int, bar: Progress = bar, task: TaskID = task) -> None:
                bar.update(task, completed=num)

            images = renderer.render(requests, report_progress)
        results: dict[str, Rate | Mean] = {**rate_images(gallery, prompts, images), **detail_scores(images)}
        if scorer:
            results |= clip_scores(scorer, gallery, prompts, images)
        sets[name] = {"prompts": len(prompts)} | {key: value.as_dict() for key, value in results.items()}
        print(json.dumps({name: sets[name]}, indent=1), flush=True)
    report = {
        "model": weights.name + suffix,
        "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
        "solver": model.solver,
        "gallery": len(gallery.entries),
        "sets": sets,
    }
    (weights / f"evaluation{suffix}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(card.table(report))
