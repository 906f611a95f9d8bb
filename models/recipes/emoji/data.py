"""Stage `data`: fetch emoji with npm, render them at 128x128, and collect names and keywords.

Writes `pictures.npy` (P, 128, 128, 4) uint8 with straight alpha, and `pictures.json` with one record for each
image. Neither is committed: the licences allow it, but the recipe can make them again.
"""

import hashlib
import io
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from safelight.models.recipes.emoji.captions import STYLES, Concept

SIZE = 128
PACKAGES = (
    "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "@iconify-json/noto@1.2.9",  # Apache-2.0
    "emojibase-data@17.0.0",  # MIT
    "emojilib@4.0.3",  # MIT
)
COMPONENTS, FLAGS = 2, 9  # emojibase groups that are left out: their emoji show no thing of their own
HELD_OUT_MODULUS = 20  # one in so many is held out


@dataclass(frozen=True, slots=True)
class EmojiImage:
    """One rendered image: its concept and style, and which parts of the model may train on it."""

    concept: Concept
    style: str

    @property
    def held_out_from_dit(self) -> bool:
        """Whether the DiT and the text tower never see it, so that generating it shows generalisation."""
        return _falls_in_holdout(f"{self.concept.hexcode}/{self.style}")

    def shown_on(self, colour: str) -> bool:
        """Whether the DiT may see it on a background of `colour`; one (concept, colour) in 20 is held out."""
        return not _falls_in_holdout(f"{self.concept.hexcode}/{colour}")

    @property
    def held_out_from_vae(self) -> bool:
        """Whether the autoencoder never sees it, so that its PSNR can be measured on it."""
        return _falls_in_holdout(f"vae/{self.concept.hexcode}/{self.style}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """All images with their pixels: `rgba` (P, 128, 128, 4) uint8, straight alpha."""

    images: tuple[EmojiImage, ...]
    rgba: np.ndarray

    def on_background(self, index: int, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
        """Image `index` over a plain background: (128, 128, 3) uint8."""
        return composite(self.rgba[index], colour)


def composite(rgba: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Put straight-alpha images (..., 4) uint8 over `colour`: (..., 3) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    flat = rgba[..., :3].astype(np.float32) * alpha + np.asarray(colour, np.float32) * (1.0 - alpha)
    return (flat + 0.5).astype(np.uint8)


def run(work: Path) -> None:
    """Fetch, render and write the data set into `work`; an existing data set is kept."""
    if (work / "pictures.json").exists():
        print(f"data: {work / 'pictures.json'} exists, nothing to do")
        return
    work.mkdir(parents=True, exist_ok=True)
    packages = install(work, PACKAGES)
    concepts = _read_concepts(packages)
    renderers = {
        "3d": _fluent_3d(packages),
        "flat": _iconify(packages, "fluent-emoji-flat"),
        "noto": _iconify(packages, "noto"),
    }
    images, pixels = [], []
    for concept in track(concepts, description="rendering"):
        for style in STYLES:
            rgba = renderers[style](concept.hexcode)
            if rgba is not None:
                images.append(EmojiImage(concept, style))
                pixels.append(rgba)
    np.save(work / "pictures.npy", np.stack(pixels))
    records = [
        {
            "hexcode": image.concept.hexcode,
            "label": image.concept.label,
            "keywords": image.concept.keywords,
            "style": image.style,
        }
        for image in images
    ]
    (work / "pictures.json").write_text(json.dumps(records))  # last: it marks the stage as finished
    print(f"data: {len(images)} images of {len(concepts)} concepts")


def load(work: Path) -> Dataset:
    """Load the data set that `run` wrote; the pixels are read from disk when they are used."""
    records = json.loads((work / "pictures.json").read_text())
    images = tuple(
        EmojiImage(Concept(r["hexcode"], r["label"], tuple(r["keywords"])), r["style"]) for r in records
    )
    return Dataset(images, np.load(work / "pictures.npy", mmap_mode="r"))


def install(work: Path, packages: Sequence[str]) -> Path:
    """Install npm packages below `work`, beside those that are there; return the folder that holds them."""
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "package.json").exists():
        (folder / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages], cwd=folder, check=True
    )
    return folder / "node_modules"


def _falls_in_holdout(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % HELD_OUT_MODULUS == 0


def _read_concepts(packages: Path) -> list[Concept]:
    entries = json.loads((packages / "emojibase-data/en/data.json").read_text())
    words = json.loads((packages / "emojilib/dist/emoji-en-US.json").read_text())
    concepts = [e for e in entries if e.get("group") not in (None, COMPONENTS, FLAGS)]
    return [
        Concept(_normalise(e["hexcode"]), e["label"].lower(), _keywords(e, words.get(e["emoji"], ())))
        for e in concepts
    ]


def _keywords(entry: dict[str, Any], emojilib_words: tuple[str, ...]) -> tuple[str, ...]:
    words = [*entry.get("tags", ()), *(w.replace("_", " ") for w in emojilib_words)]
    keywords = [w.lower() for w in words if any(c.isalpha() for c in w) and not w.startswith(":")]
    return tuple(dict.fromkeys(w for w in keywords if w != entry["label"].lower()))


def _normalise(hexcode: str) -> str:
    """The code points in lower case, without variation selectors, on which the sources disagree."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _fluent_3d(packages: Path) -> Callable[[str], np.ndarray | None]:
    files = {_normalise(f.stem): f for f in (packages / "@lobehub/fluent-emoji-3d/assets").glob("*.webp")}

    def render(hexcode: str) -> np.ndarray | None:
        if hexcode not in files:
            return None
        image = Image.open(files[hexcode]).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        return np.asarray(image)

    return render


def _iconify(packages: Path, name: str) -> Callable[[str], np.ndarray | None]:
    import resvg_py  # only this stage needs it

    folder = packages / "@iconify-json" / name
    icons = json.loads((folder / "icons.json").read_text())
    names = {_normalise(code): icon for code, icon in json.loads((folder / "chars.json").read_text()).items()}

    def render(hexcode: str) -> np.ndarray | None:
        icon = icons["icons"].get(names.get(hexcode, ""))
        if icon is None:
            return None
        width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
        box = f'viewBox="0 0 {width} {height}" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
        image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        square = Image.new("RGBA", (SIZE, SIZE))  # a few icons are not square
        square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        return np.asarray(square)

    return render
