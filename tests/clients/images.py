"""The image that clients edit, and what an image that they got must be."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128  # of the embedded model's images


def upload() -> bytes:
    """A PNG file of a red disc on white."""
    image = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(image).ellipse((90, 40, 210, 160), "red")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mask() -> bytes:
    """A PNG file of the upload's size whose transparent left half is to be redrawn."""
    image = Image.new("RGBA", (300, 200), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 150, 200))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def check_images(
    files: Sequence[bytes], count: int = 1, format: str = "PNG", seed: int | None = None
) -> None:
    """Raise `AssertionError` unless these are images of the model's size that show something.

    Args:
        files: Their files.
        count: How many there must be.
        format: Pillow's name of their format.
        seed: The seed that was asked for, which a PNG file says.
    """
    assert len(files) == count, f"{len(files)} images in place of {count}"
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size) == (format, (SIDE, SIDE)), f"{image.format} of {image.size}"
            assert seed is None or f"Seed: {seed}," in image.info["parameters"], "another seed"
            contrast = np.ptp(np.asarray(image.convert("L")))
        assert contrast > 32, "an image of one colour"
