"""Contact sheets of unselected images: each is the first that its seed gives."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import STYLES, with_style
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.evaluation.renderer import Renderer
from safelight.pipeline.params import GenerationParams

SEED = 1000
CELL_W, CELL_H = 140, 160

PROMPTS = (
    "red apple", "rocket", "pizza", "christmas tree", "smiling cat face", "red heart",
    "3d red apple", "flat red apple", "noto red apple", "3d rocket", "flat rocket", "noto rocket",
    "guitar", "umbrella", "camera", "police car", "key", "airplane",
    "grinning face", "crying face", "angry face", "ghost", "alien", "robot",
    "dog face", "panda", "frog", "octopus", "butterfly", "whale",
    "sunflower", "cactus", "mushroom", "banana", "strawberry", "hamburger",
    "house", "castle", "sailboat", "bicycle", "soccer ball", "trophy",
    "a yellow fruit", "something to drink", "green heart",
    "a cat on a bicycle", "two red apples", "purple elephant",
)  # fmt: skip
COMMON = ("red apple", "smiling cat face", "christmas tree", "rocket", "pizza")


def default_request(prompt: str, seed: int, model: ModelInfo) -> GenerationParams:
    """A request for `prompt` at the model's defaults."""
    width, height = model.native_size
    return GenerationParams(
        prompt, "", width, height, model.num_steps, model.guidance_scale, model.solver, seed
    )


def draw_contact_sheet(renderer: Renderer, model: ModelInfo, gallery: Gallery, path: Path) -> None:
    """Render the images of `PROMPTS`, each with a bar below.

    The bar is green if the nearest clean image has the prompt's concept, and red if not.
    It is grey if the prompt names no concept.
    """
    groups = {
        entry.label: group for entry, group in zip(gallery.entries, gallery.concept_groups, strict=True)
    }
    images = renderer.render([default_request(prompt, SEED + i, model) for i, prompt in enumerate(PROMPTS)])
    colours = []
    for prompt, nearest in zip(PROMPTS, gallery.nearest(images, "white"), strict=True):
        style, _, rest = prompt.partition(" ")
        subject = rest if style in STYLES else prompt
        is_right = gallery.concept_groups[nearest[0]] == groups.get(subject)
        colours.append(("#1a9850" if is_right else "#d73027") if subject in groups else "#888888")
    _write_page([Image.fromarray(pixels) for pixels in images], PROMPTS, colours, 8, path)


def draw_common_things(renderer: Renderer, model: ModelInfo, path: Path) -> None:
    """Render `COMMON` in every style, each beside the image of the same noise without guidance."""
    prompts = [with_style(thing, style) for thing in COMMON for style in STYLES]
    guided = [default_request(prompt, SEED + i, model) for i, prompt in enumerate(prompts)]
    requests = [request for params in guided for request in (params, replace(params, guidance_scale=1.0))]
    captions = [caption for prompt in prompts for caption in (prompt, "without guidance")]
    images = [Image.fromarray(pixels) for pixels in renderer.render(requests)]
    _write_page(images, captions, ["white"] * len(images), 2 * len(STYLES), path)


def _write_page(
    images: Sequence[Image.Image], captions: Sequence[str], colours: Sequence[str], columns: int, path: Path
) -> None:
    """Write a grid of images, each with a bar and a caption below.

    Args:
        images: what to show, in rows from left to right.
        captions: one for each image.
        colours: of the bars, one for each image.
        columns: images in a row.
        path: the file to write.
    """
    page = Image.new("RGB", (columns * CELL_W, -(-len(images) // columns) * CELL_H), "white")
    pen = ImageDraw.Draw(page)
    for i, (image, caption, colour) in enumerate(zip(images, captions, colours, strict=True)):
        x, y = i % columns * CELL_W + 6, i // columns * CELL_H + 4
        page.paste(image, (x, y))
        pen.rectangle([x, y + data.SIZE, x + data.SIZE, y + data.SIZE + 3], fill=colour)
        pen.text((x, y + data.SIZE + 6), caption, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, quality=90, method=6)  # WebP: a fifth of the bytes of PNG
    print(f"{path}")
