"""Stages `pack` and `unpack`: the data set as one file of at most 16 MB, for a machine without network.

Images are lossy WebP (37 dB, where the autoencoder reaches 31); latents and text states are computed again on
the other machine, which takes a GPU seconds.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

FILE = "pictures.zip"
RECORDS, PIXELS = "pictures.json", "pictures.npy"
QUALITY, OPACITY_QUALITY = 80, 80
MAX_BYTES = 16_000_000


def run(work: Path) -> None:
    """Write `work/pictures.zip` from the data set; raise `ValueError` if it becomes too large."""
    pixels = np.load(work / PIXELS, mmap_mode="r")
    with zipfile.ZipFile(work / FILE, "w") as package:
        package.writestr(RECORDS, (work / RECORDS).read_text(), zipfile.ZIP_DEFLATED)
        for number, rgba in enumerate(track(pixels, description="packing")):
            package.writestr(f"{number:05d}.webp", _encode(rgba))
    size = (work / FILE).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{work / FILE}: {size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:.0f} are allowed")
    print(f"pack: {work / FILE}, {size / 1e6:.1f} MB")


def unpack(work: Path) -> None:
    """Write the data set of `work/pictures.zip` as stage `data` does; an existing one is kept."""
    if (work / RECORDS).exists():
        print(f"unpack: {work / RECORDS} exists, nothing to do")
        return
    with zipfile.ZipFile(work / FILE) as package:
        names = sorted(name for name in package.namelist() if name.endswith(".webp"))
        pixels = [_decode(package.read(name)) for name in track(names, description="unpacking")]
        np.save(work / PIXELS, np.stack(pixels))
        (work / RECORDS).write_bytes(package.read(RECORDS))  # last: it marks the stage as finished
    print(f"unpack: {len(pixels)} images")


def _encode(rgba: np.ndarray) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(rgba), "RGBA")
    image.save(file, "WEBP", quality=QUALITY, alpha_quality=OPACITY_QUALITY, method=4)
    return file.getvalue()


def _decode(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))
