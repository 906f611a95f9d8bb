"""Stage `sizes`: rate the images of every trained size; sizes that are much worse are not served.

Images are kept in `work/drawn`, so that an interrupted run can resume.
"""

import json
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress, TaskID

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.sheets import default_request
from safelight.models.recipes.emoji.views import NATIVE, OTHERS
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.nearest_image import Rate, rate_images
from safelight.pipeline.evaluation.prompts import read_prompt_sets
from safelight.pipeline.evaluation.renderer import Renderer

SET = "names"
# The largest loss of concept top-1 against the native size at which a size is served. The served sizes are
# listed in `safelight.models.find_checkpoint.EMBEDDED`.
MAX_LOSS = 0.10


def run(work: Path, weights: Path, limit: int) -> None:
    """Rate at most `limit` prompts at every size; write `weights/sizes.json`."""
    model, gallery = replace(find_model(str(weights)), sizes=(NATIVE, *OTHERS)), Gallery.load(weights)
    folder = work / "drawn"
    folder.mkdir(exist_ok=True)
    renderer = Renderer(model, folder)
    prompts = read_prompt_sets(weights)[SET][:limit]
    rates: dict[str, Rate] = {}
    with Progress() as bar:
        for width, height in model.sizes:
            task = bar.add_task(f"{width}x{height}", total=len(prompts))
            requests = [
                replace(default_request(prompt.text, SEED + i, model), width=width, height=height)
                for i, prompt in enumerate(prompts)
            ]

            def report_progress(num: int, task: TaskID = task) -> None:
                bar.update(task, completed=num)

            images = renderer.render(requests, report_progress)
            rates[f"{width}x{height}"] = rate_images(gallery, prompts, images)["concept_top1"]
    native = next(iter(rates.values())).share
    results = {
        size: rate.as_dict() | {"is_served": rate.share >= native - MAX_LOSS} for size, rate in rates.items()
    }
    (weights / "sizes.json").write_text(
        json.dumps({"set": SET, "prompts": len(prompts), "sizes": results}, indent=1) + "\n"
    )
    for size, rate in rates.items():
        print(f"{size:8} {rate.as_text()}{'' if results[size]['is_served'] else ': not served'}")
