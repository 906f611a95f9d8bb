"""Stage `evaluate`: the model's own sets of prompts through the engine that serves, judged; and the sheets to be looked at."""

import json
from pathlib import Path

from rich.progress import Progress

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji import card, sheets
from safelight.models.recipes.emoji.sheets import image_of
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.clip_score import clip_scores, load_scorer
from safelight.pipeline.evaluation.nearest_image import judge
from safelight.pipeline.evaluation.prompts import own_sets
from safelight.pipeline.evaluation.renderer import Renderer

SEED = 0


def run(work: Path, weights: Path, limit: int) -> None:
    """Judge at most `limit` prompts of every set and draw the sheets.

    Writes `weights/evaluation.json`, `docs/contact-sheet.png` and `docs/common-things.png`.

    The images are kept in `work/drawn`, so an interrupted run goes on where it was.
    """
    model, gallery = find_model(str(weights)), Gallery.load(weights)
    kept = work / "drawn"
    kept.mkdir(exist_ok=True)
    renderer = Renderer(model, kept)
    sheets.draw_contact_sheet(renderer, model, gallery, Path("docs/contact-sheet.png"))
    sheets.draw_common_things(renderer, model, Path("docs/common-things.png"))
    scorer = load_scorer(model)
    sets = {}
    for name, prompts in own_sets(weights).items():
        chosen = prompts[:limit]
        with Progress() as bar:
            task = bar.add_task(name, total=len(chosen))
            images = [image_of(prompt.text, SEED + i, model) for i, prompt in enumerate(chosen)]
            drawn = renderer.draw(images, lambda done, bar=bar, task=task: bar.update(task, completed=done))
        found = {
            **judge(gallery, chosen, drawn),
            **(clip_scores(scorer, gallery, chosen, drawn) if scorer else {}),
        }
        sets[name] = {"prompts": len(chosen)} | {figure: value.as_dict() for figure, value in found.items()}
        print(json.dumps({name: sets[name]}, indent=1), flush=True)
    figures = {
        "model": weights.name,
        "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
        "solver": model.solver,
        "gallery": len(gallery.entries),
        "sets": sets,
    }
    (weights / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(card.table(figures))
