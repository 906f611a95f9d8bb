"""Stage `curves`: concept accuracy by steps, solver, guidance and its stride, to choose the defaults.

Writes `docs/emoji-128-curves.png`, and `curves.json` beside the weights. Images are kept in `work/drawn`, so
that an interrupted run can resume.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.sheets import default_request
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.nearest_image import rate_images
from safelight.pipeline.evaluation.prompts import read_prompt_sets
from safelight.pipeline.evaluation.renderer import Renderer
from safelight.pipeline.params import GenerationParams

DIGEST = "Figures"  # key of the digest in the plot's text
SET = "styled"
SOLVERS = ("ddim", "dpmpp_2m", "unipc_2")
STEPS = (4, 6, 8, 10, 15, 20, 30, 50)
STRIDES = (1, 2, 3, 5, 10)  # guidance strides: steps from one evaluation of both predictions to the next
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)


def run(work: Path, weights: Path, limit: int) -> None:
    """Rate the images of at most `limit` prompts of the set at every point of every curve."""
    model, gallery = find_model(str(weights)), Gallery.load(weights)
    folder = work / "drawn"
    folder.mkdir(exist_ok=True)
    renderer = Renderer(model, folder)
    prompts = read_prompt_sets(weights)[SET][:limit]
    requests = [default_request(prompt.text, SEED + i, model) for i, prompt in enumerate(prompts)]
    points: dict[str, dict[str, dict[str, float]]] = {}
    with Progress() as bar:
        task = bar.add_task(
            "curves", total=(len(SOLVERS) * len(STEPS) + len(GUIDANCE) + len(STRIDES)) * len(prompts)
        )
        for curve, x, point_requests in _points(requests):
            start = bar.tasks[task].completed

            def report_progress(num: int, start: float = start) -> None:
                bar.update(task, completed=start + num)

            images = renderer.render(point_requests, report_progress)
            rate = rate_images(gallery, prompts, images)["concept_top1"]
            points.setdefault(curve, {})[f"{x:g}"] = rate.as_dict()
    report = {"set": SET, "prompts": len(prompts), "default": default_settings(requests[0]), "points": points}
    (weights / "curves.json").write_text(json.dumps(report, indent=1) + "\n")
    draw_plot(points, Path("docs/emoji-128-curves.png"))
    print(table(points))


def default_settings(params: GenerationParams) -> dict[str, float | str]:
    """The model's defaults, which hold wherever a curve does not vary them."""
    return {
        "num_inference_steps": params.num_steps,
        "guidance_scale": params.guidance_scale,
        "solver": params.solver,
    }


def table(points: dict[str, dict[str, dict[str, float]]]) -> str:
    """The points as three Markdown tables: by steps for each solver, by guidance and by stride."""
    blocks = [
        _table(
            "solver", [f"{steps} steps" for steps in STEPS], {f"`{name}`": points[name] for name in SOLVERS}
        ),
        _table("guidance", [f"{w:g}" for w in GUIDANCE], {"top-1": points["guidance"]}),
        _table("`guidance_stride`", [str(stride) for stride in STRIDES], {"top-1": points["stride"]}),
    ]
    return "\n\n".join(blocks)


def _table(title: str, columns: list[str], rows: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label, rates in rows.items():
        cells = [f"{rate['rate']:.1%}" for rate in rates.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_plot(points: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Plot accuracy against steps and against guidance, with 95 % intervals, and the digest of `points`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for curve, rates in points.items():
        if curve == "stride":
            continue
        panel = panels[1] if curve == "guidance" else panels[0]
        xs, ys = [float(x) for x in rates], [100 * rate["rate"] for rate in rates.values()]
        errors = [
            [100 * (rate["rate"] - rate["low"]) for rate in rates.values()],
            [100 * (rate["high"] - rate["rate"]) for rate in rates.values()],
        ]
        panel.errorbar(xs, ys, yerr=errors, marker="o", capsize=2, label=curve)
    panels[0].set(xlabel="steps", ylabel="concept top-1, %", xscale="log", xticks=STEPS, xticklabels=STEPS)
    panels[0].minorticks_off()  # their labels would overlap those of STEPS
    panels[0].legend()
    panels[1].set(xlabel="guidance scale")
    for panel in panels:
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={DIGEST: digest(points), "Software": None})
    pyplot.close(figure)


def digest(points: dict[str, dict[str, dict[str, float]]]) -> str:
    """Of what the plot shows; the plot carries it as text, so that an old one is recognised."""
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def _points(defaults: Sequence[GenerationParams]) -> Iterator[tuple[str, float, list[GenerationParams]]]:
    """Yield the curve, the x and the requests of every point."""
    for solver in SOLVERS:
        for steps in STEPS:
            yield solver, steps, [replace(params, solver=solver, num_steps=steps) for params in defaults]
    for scale in GUIDANCE:
        yield "guidance", scale, [replace(params, guidance_scale=scale) for params in defaults]
    for stride in STRIDES:
        yield "stride", stride, [replace(params, guidance_stride=stride) for params in defaults]
