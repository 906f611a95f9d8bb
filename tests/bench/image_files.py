"""Measures how far JPEG and WebP files are from the pixels: `python -m tests.bench.image_files`.

The images are the eight of docs/strip.png, which `emoji-128` drew. "Before" is Pillow's default at the same
quality, with colour at half resolution below a lossless WebP at 100, and no metadata. Prints a Markdown
table for docs/api.md.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from safelight.pipeline.engine.image_files import encode_image
from safelight.pipeline.params import GenerationParams

STRIP = Path(__file__).parents[2] / "docs" / "strip.png"
SIDE, STEP, COUNT = 128, 136, 8
QUALITIES = (50, 75, 89, 90, 95, 99, 100)
PARAMS = GenerationParams("a red apple", "", SIDE, SIDE, 20, 5.0, "dpmpp_2m", seed=3)
HEADING = ("format", "quality", "bytes", "max", "mean", "rms R", "rms G", "rms B")


def main() -> None:
    print("| " + " | ".join(HEADING) + " |")
    print("|---" * len(HEADING) + "|")
    images = load_images()
    for format in ("jpeg", "webp"):
        for quality in QUALITIES:
            before = figures([encode_plainly(pixels, format, quality) for pixels in images], images)
            files = [encode_image(pixels, format, quality, PARAMS, "emoji-128") for pixels in images]
            pairs = zip(before, figures(files, images), strict=True)
            cells = [old if old == new else f"{old} → {new}" for old, new in pairs]
            print(f"| {format} | {quality} | {' | '.join(cells)} |")


def load_images() -> list[np.ndarray]:
    """The images of docs/strip.png, (H, W, 3) uint8."""
    strip = np.asarray(Image.open(STRIP).convert("RGB"))
    return [np.ascontiguousarray(strip[:, i * STEP : i * STEP + SIDE]) for i in range(COUNT)]


def encode_plainly(pixels: np.ndarray, format: str, quality: int) -> bytes:
    """A file by Pillow's defaults, WebP at 100 without loss."""
    buffer = io.BytesIO()
    lossless = {"lossless": True} if format == "webp" and quality == 100 else {}
    Image.fromarray(pixels).save(buffer, format.upper(), quality=quality, **lossless)
    return buffer.getvalue()


def figures(files: list[bytes], images: list[np.ndarray]) -> list[str]:
    """Mean bytes of a file, and the largest, mean and root mean square error of its values of 255."""
    errors = np.stack([decoded(file) - pixels for file, pixels in zip(files, images, strict=True)])
    size = sum(map(len, files)) / len(files)
    rms = np.sqrt(np.square(errors).mean((0, 1, 2)))
    shown = [f"{value:.2f}" for value in (np.abs(errors).mean(), *rms)]
    return [f"{size:,.0f}", f"{np.abs(errors).max():.0f}", *shown]


def decoded(file: bytes) -> np.ndarray:
    """The pixels of `file` as floats."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"), dtype=np.float64)


if __name__ == "__main__":
    main()
