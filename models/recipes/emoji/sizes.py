"""Stage `sizes`: how well prompts are followed at every size that was trained. Those that fall behind are not served.

Images are kept in `work/drawn`, so an interrupted run goes on where it was.
"""

import json
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.sheets import image_of
from safelight.models.recipes.emoji.views import NATIVE, OTHERS
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.nearest_image import Rate, judge
from safelight.pipeline.evaluation.prompts import own_sets
from safelight.pipeline.evaluation.renderer import Renderer

SET = "names"
MAY_LOSE = 0.10  # of concept top-1 against the native size, for a size to be served (`safelight.models.find_checkpoint.EMBEDDED`)


def run(work: Path, weights: Path, limit: int) -> None:
    """Judge at most `limit` prompts at every size; write `weights/sizes.json`."""
    model, gallery = replace(find_model(str(weights)), sizes=(NATIVE, *OTHERS)), Gallery.load(weights)
    kept = work / "drawn"
    kept.mkdir(exist_ok=True)
    renderer = Renderer(model, kept)
    prompts = own_sets(weights)[SET][:limit]
    rates: dict[str, Rate] = {}
    with Progress() as bar:
        for width, height in model.sizes:
            task = bar.add_task(f"{width}x{height}", total=len(prompts))
            images = [
                replace(image_of(prompt.text, SEED + i, model), width=width, height=height)
                for i, prompt in enumerate(prompts)
            ]
            drawn = renderer.draw(images, lambda done, task=task: bar.update(task, completed=done))
            rates[f"{width}x{height}"] = judge(gallery, prompts, drawn)["concept_top1"]
    native = next(iter(rates.values())).share
    found = {
        size: rate.as_dict() | {"is_served": rate.share >= native - MAY_LOSE} for size, rate in rates.items()
    }
    (weights / "sizes.json").write_text(
        json.dumps({"set": SET, "prompts": len(prompts), "sizes": found}, indent=1) + "\n"
    )
    for size, rate in rates.items():
        print(f"{size:8} {rate.as_text()}{'' if found[size]['is_served'] else ': not to be served'}")
