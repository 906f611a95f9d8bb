"""Draw the strip of images at the top of the README: `python docs/strip.py`."""

from pathlib import Path

from PIL import Image

import safelight

PROMPTS = (
    "red apple",
    "noto smiling cat face",
    "christmas tree",
    "rocket on a blue background",
    "green apple",
    "umbrella",
    "sunflower",
    "flat heart",
)
SEED = 3
GAP = 8


def main() -> None:
    with safelight.Pipeline("emoji-128") as pipeline:
        images = [pipeline.generate(prompt, seed=SEED)[0].pil.convert("RGB") for prompt in PROMPTS]
    width, height = images[0].size
    strip = Image.new("RGB", (len(images) * (width + GAP) - GAP, height), "white")
    for index, image in enumerate(images):
        strip.paste(image, (index * (width + GAP), 0))
    strip.save(Path(__file__).with_name("strip.png"), optimize=True)


if __name__ == "__main__":
    main()
