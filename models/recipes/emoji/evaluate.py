"""Stage `evaluate`: rate the exported model on its prompt sets, and render the contact sheets."""

import json
from pathlib import Path

from rich.progress import Progress, TaskID

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji import card, sheets
from safelight.models.recipes.emoji.sheets import default_request
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.clip_score import Mean, clip_scores, load_scorer
from safelight.pipeline.evaluation.nearest_image import Rate, rate_images
from safelight.pipeline.evaluation.prompts import read_prompt_sets
from safelight.pipeline.evaluation.renderer import Renderer

SEED = 0


def run(work: Path, weights: Path, limit: int) -> None:
    """Rate at most `limit` prompts of every set and render the sheets.

    Writes `weights/evaluation.json`, `docs/contact-sheet.png` and `docs/common-things.png`.
    Images are kept in `work/drawn`, so that an interrupted run can resume.
    """
    model, gallery = find_model(str(weights)), Gallery.load(weights)
    folder = work / "drawn"
    folder.mkdir(exist_ok=True)
    renderer = Renderer(model, folder)
    sheets.draw_contact_sheet(renderer, model, gallery, Path("docs/contact-sheet.png"))
    sheets.draw_common_things(renderer, model, Path("docs/common-things.png"))
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
        results: dict[str, Rate | Mean] = {**rate_images(gallery, prompts, images)}
        if scorer:
            results |= clip_scores(scorer, gallery, prompts, images)
        sets[name] = {"prompts": len(prompts)} | {key: value.as_dict() for key, value in results.items()}
        print(json.dumps({name: sets[name]}, indent=1), flush=True)
    report = {
        "model": weights.name,
        "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
        "solver": model.solver,
        "gallery": len(gallery.entries),
        "sets": sets,
    }
    (weights / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    print(card.table(report))
