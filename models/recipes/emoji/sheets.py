"""Pages of images to be looked at, never selected: each is the first that its seed gives."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import STYLES, styled
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
    "a yellow fruit", "something to drink", "green heart", "a cat on a bicycle", "two red apples", "purple elephant",
)  # fmt: skip
COMMON = ("red apple", "smiling cat face", "christmas tree", "rocket", "pizza")


def image_of(prompt: str, seed: int, model: ModelInfo) -> GenerationParams:
    """A prompt at the model's defaults."""
    width, height = model.native_size
    return GenerationParams(
        prompt, "", width, height, model.num_steps, model.guidance_scale, model.solver, seed
    )


def draw_contact_sheet(renderer: Renderer, model: ModelInfo, gallery: Gallery, path: Path) -> None:
    """48 prompts: a green bar where the nearest clean image is of the concept, red where it is not, grey for no such concept."""
    groups = {entry.label: group for entry, group in zip(gallery.entries, gallery.group, strict=True)}
    drawn = renderer.draw([image_of(prompt, SEED + i, model) for i, prompt in enumerate(PROMPTS)])
    colours = []
    for prompt, near in zip(PROMPTS, gallery.nearest(drawn, "white"), strict=True):
        style, _, rest = prompt.partition(" ")
        subject = rest if style in STYLES else prompt
        right = gallery.group[near[0]] == groups.get(subject)
        colours.append(("#1a9850" if right else "#d73027") if subject in groups else "#888888")
    _page([Image.fromarray(pixels) for pixels in drawn], PROMPTS, colours, 8, path)


def draw_common_things(renderer: Renderer, model: ModelInfo, path: Path) -> None:
    """`COMMON` in every style, a row each, and to the right of each the same noise and words without guidance."""
    prompts = [styled(thing, style) for thing in COMMON for style in STYLES]
    guided = [image_of(prompt, SEED + i, model) for i, prompt in enumerate(prompts)]
    images = [each for params in guided for each in (params, replace(params, guidance_scale=1.0))]
    captions = [caption for prompt in prompts for caption in (prompt, "the same, guidance off")]
    drawn = renderer.draw(images)
    _page(
        [Image.fromarray(pixels) for pixels in drawn], captions, ["white"] * len(drawn), 2 * len(STYLES), path
    )


def _page(
    images: Sequence[Image.Image], captions: Sequence[str], colours: Sequence[str], columns: int, path: Path
) -> None:
    page = Image.new("RGB", (columns * CELL_W, -(-len(images) // columns) * CELL_H), "white")
    pen = ImageDraw.Draw(page)
    for i, (image, caption, colour) in enumerate(zip(images, captions, colours, strict=True)):
        x, y = i % columns * CELL_W + 6, i // columns * CELL_H + 4
        page.paste(image, (x, y))
        pen.rectangle([x, y + data.SIZE, x + data.SIZE, y + data.SIZE + 3], fill=colour)
        pen.text((x, y + data.SIZE + 6), caption, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)
    print(f"{path}")
