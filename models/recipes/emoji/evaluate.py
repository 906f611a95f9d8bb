"""Stage `evaluate`: the model's own sets of prompts through the engine that serves, judged; and the contact sheet."""

import json
from pathlib import Path

from PIL import Image, ImageDraw
from rich.progress import Progress

from models.gallery import Gallery
from models.recipes.emoji import card, data
from models.recipes.emoji.captions import STYLES
from pipeline.catalog import find_model
from pipeline.evaluation.clip import clip_scores, load_scorer
from pipeline.evaluation.judge import judge
from pipeline.evaluation.prompts import own_sets
from pipeline.evaluation.renderer import Renderer
from pipeline.params import GenerationParams, ModelInfo

SEED, SHEET_SEED = 0, 1000

SHEET = (
    "red apple", "rocket", "pizza", "christmas tree", "smiling cat face", "red heart",
    "3d red apple", "flat red apple", "noto red apple", "3d rocket", "flat rocket", "noto rocket",
    "guitar", "umbrella", "camera", "police car", "key", "airplane",
    "grinning face", "crying face", "angry face", "ghost", "alien", "robot",
    "dog face", "panda", "frog", "octopus", "butterfly", "whale",
    "sunflower", "cactus", "mushroom", "banana", "strawberry", "hamburger",
    "house", "castle", "sailboat", "bicycle", "soccer ball", "trophy",
    "a yellow fruit", "something to drink", "green heart", "a cat on a bicycle", "two red apples", "purple elephant",
)  # fmt: skip


def run(work: Path, weights: Path, limit: int) -> None:
    """Judge at most `limit` prompts of every set, draw the sheet; write `weights/evaluation.json` and `docs/contact-sheet.png`.

    The pictures are kept in `work/drawn`, so an interrupted run goes on where it was.
    """
    model, gallery = find_model(str(weights)), Gallery.load(weights)
    kept = work / "drawn"
    kept.mkdir(exist_ok=True)
    renderer = Renderer(model, kept)
    draw_sheet(renderer, model, gallery, Path("docs/contact-sheet.png"))
    scorer = load_scorer(model)
    sets = {}
    for name, prompts in own_sets(weights).items():
        chosen = prompts[:limit]
        with Progress() as bar:
            task = bar.add_task(name, total=len(chosen))
            pictures = [picture_of(prompt.text, SEED + i, model) for i, prompt in enumerate(chosen)]
            drawn = renderer.draw(pictures, lambda done, bar=bar, task=task: bar.update(task, completed=done))
        found = {**judge(gallery, chosen, drawn), **(clip_scores(scorer, gallery, chosen, drawn) if scorer else {})}
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


def picture_of(prompt: str, seed: int, model: ModelInfo) -> GenerationParams:
    """A prompt at the model's defaults."""
    width, height = model.native_size
    return GenerationParams(prompt, "", width, height, model.num_steps, model.guidance_scale, model.solver, seed)


def draw_sheet(renderer: Renderer, model: ModelInfo, gallery: Gallery, path: Path, columns: int = 8) -> None:
    """48 prompts, never selected: a green bar where the nearest clean picture is of the concept, red where it is not."""
    groups = {entry.label: group for entry, group in zip(gallery.entries, gallery.group, strict=True)}
    drawn = renderer.draw([picture_of(prompt, SHEET_SEED + i, model) for i, prompt in enumerate(SHEET)])
    nearest = gallery.nearest(drawn, "white")
    cell_w, cell_h, size = 140, 160, data.SIZE
    sheet = Image.new("RGB", (columns * cell_w, -(-len(SHEET) // columns) * cell_h), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, pixels, near) in enumerate(zip(SHEET, drawn, nearest, strict=True)):
        x, y = i % columns * cell_w + 6, i // columns * cell_h + 4
        sheet.paste(Image.fromarray(pixels), (x, y))
        style, _, rest = prompt.partition(" ")
        subject = rest if style in STYLES else prompt
        right = gallery.group[near[0]] == groups.get(subject)
        colour = ("#1a9850" if right else "#d73027") if subject in groups else "#888888"
        pen.rectangle([x, y + size, x + size, y + size + 3], fill=colour)
        pen.text((x, y + size + 6), prompt, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    print(f"evaluate: {path} (green: nearest clean picture is the concept, red: it is not, grey: no such concept)")
