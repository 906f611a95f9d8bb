"""Stage `curves`: concept accuracy against steps, solvers, guidance and its stride, from which the model's defaults are chosen.

Writes `docs/emoji-128-curves.png` and the tables of its figures beside the weights. Images are kept in `work/drawn`, so an
interrupted run goes on where it was.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.sheets import image_of
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.nearest_image import Rate, judge
from safelight.pipeline.evaluation.prompts import Prompt, own_sets
from safelight.pipeline.evaluation.renderer import Renderer
from safelight.pipeline.params import GenerationParams

SET = "styled"
SOLVERS = ("ddim", "dpmpp_2m", "unipc_2")
STEPS = (4, 6, 8, 10, 15, 20, 30, 50)
STRIDES = (1, 2, 3, 5, 10)  # every how many steps both predictions are evaluated
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)


def run(work: Path, weights: Path, limit: int) -> None:
    """Measure at most `limit` prompts of the set at every point."""
    model, gallery = find_model(str(weights)), Gallery.load(weights)
    kept = work / "drawn"
    kept.mkdir(exist_ok=True)
    renderer = Renderer(model, kept)
    prompts = own_sets(weights)[SET][:limit]
    plain = [image_of(prompt.text, SEED + i, model) for i, prompt in enumerate(prompts)]
    points: dict[str, dict[str, dict[str, float]]] = {}
    with Progress() as bar:
        task = bar.add_task(
            "curves", total=(len(SOLVERS) * len(STEPS) + len(GUIDANCE) + len(STRIDES)) * len(prompts)
        )
        for curve, x, images in _points(plain):
            done = bar.tasks[task].completed
            drawn = renderer.draw(images, lambda num, done=done: bar.update(task, completed=done + num))
            points.setdefault(curve, {})[f"{x:g}"] = _figure(gallery, prompts, drawn)
    figures = {"set": SET, "prompts": len(prompts), "default": plain_defaults(plain[0]), "points": points}
    (weights / "curves.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw_plot(points, Path("docs/emoji-128-curves.png"))
    print(table(points))


def plain_defaults(params: GenerationParams) -> dict[str, float | str]:
    """What the curves leave alone: the model's defaults."""
    return {
        "num_inference_steps": params.num_steps,
        "guidance_scale": params.guidance_scale,
        "solver": params.solver,
    }


def table(points: dict[str, dict[str, dict[str, float]]]) -> str:
    """The points as Markdown, a row a curve for steps, and one for guidance."""
    lines = [
        "| solver | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |",
        "|---" * (len(STEPS) + 1) + "|",
    ]
    for solver in SOLVERS:
        lines.append(
            f"| `{solver}` | "
            + " | ".join(f"{points[solver][str(steps)]['rate']:.1%}" for steps in STEPS)
            + " |"
        )
    lines += [
        "",
        "| guidance | " + " | ".join(f"{w:g}" for w in GUIDANCE) + " |",
        "|---" * (len(GUIDANCE) + 1) + "|",
    ]
    lines.append(
        "| top-1 | " + " | ".join(f"{points['guidance'][f'{w:g}']['rate']:.1%}" for w in GUIDANCE) + " |"
    )
    lines += [
        "",
        "| `guidance_stride` | " + " | ".join(map(str, STRIDES)) + " |",
        "|---" * (len(STRIDES) + 1) + "|",
    ]
    lines.append(
        "| top-1 | " + " | ".join(f"{points['stride'][str(stride)]['rate']:.1%}" for stride in STRIDES) + " |"
    )
    return "\n".join(lines)


def draw_plot(points: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Two panels with 95 % intervals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for curve, of in points.items():
        if curve == "stride":
            continue
        panel = panels[1] if curve == "guidance" else panels[0]
        xs, ys = [float(x) for x in of], [100 * p["rate"] for p in of.values()]
        spread = [
            [100 * (p["rate"] - p["low"]) for p in of.values()],
            [100 * (p["high"] - p["rate"]) for p in of.values()],
        ]
        panel.errorbar(xs, ys, yerr=spread, marker="o", capsize=2, label=curve)
    panels[0].set(xlabel="steps", ylabel="concept top-1, %", xscale="log", xticks=STEPS, xticklabels=STEPS)
    panels[0].minorticks_off()  # which would be labelled beside ours
    panels[0].legend()
    panels[1].set(xlabel="guidance scale")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _points(plain: Sequence[GenerationParams]) -> Iterator[tuple[str, float, list[GenerationParams]]]:
    for solver in SOLVERS:
        for steps in STEPS:
            yield solver, steps, [replace(params, solver=solver, num_steps=steps) for params in plain]
    for scale in GUIDANCE:
        yield "guidance", scale, [replace(params, guidance_scale=scale) for params in plain]
    for stride in STRIDES:
        yield "stride", stride, [replace(params, guidance_stride=stride) for params in plain]


def _figure(gallery: Gallery, prompts: Sequence[Prompt], drawn) -> dict[str, float]:
    rate: Rate = judge(gallery, prompts, drawn)["concept_top1"]
    return rate.as_dict()
