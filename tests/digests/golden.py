"""Golden images of `emoji-128`: digests of their pixels by kind of processor, and the images themselves.

Bits depend on the kernels, so on the processor, the number type and the version of torch. On a kind that
`golden.json` does not know, images are compared with `golden.webp` within a tolerance.

`python -m tests.digests.golden` adds the digests of this kind. `--images` also replaces the images and drops
the digests of all other kinds: a change that is meant to alter images needs it.
"""

import argparse
import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_dtype
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import GenerationParams
from tests.pipeline.parts import decode, drain, latents_of

MODEL = "emoji-128"
RECORD = Path(__file__).with_name("golden.json")
SHEET = RECORD.with_suffix(".webp")
COMMAND = "python -m tests.digests.golden"
THREADS = 2  # kernels divide sums among threads, so their number changes bits on some processors
SIDE, COLUMNS = 128, 4


@dataclass(frozen=True, slots=True)
class Golden:
    """The committed record."""

    requests: tuple[GenerationParams, ...]
    digests: dict[str, list[str]]  # of every request, by kind

    @classmethod
    def load(cls) -> "Golden":
        """Read `golden.json`."""
        record = json.loads(RECORD.read_text())
        return cls(tuple(_read_request(fields) for fields in record["requests"]), record["digests"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", action="store_true", help="replace the images; drop all other digests")
    args = parser.parse_args()
    record = json.loads(RECORD.read_text())
    images = draw(Golden.load().requests)
    if args.images:
        record["digests"] = {}
        write_sheet(images)
    record["digests"][kind()] = digests_of(images)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{RECORD}: {kind()}")


def kind() -> str:
    """The kind of this processor, with the rest that decides the bits of an image."""
    dtype = str(fast_dtype()).removeprefix("torch.")
    capability = torch.backends.cpu.get_cpu_capability()
    version = torch.__version__.partition("+")[0]
    return f"{platform.machine()} {_processor()}, {capability}, {dtype}, torch {version}"


def draw(requests: tuple[GenerationParams, ...]) -> np.ndarray:
    """The images (N, H, W, 3) uint8, generated in one batch as the service would."""
    model = find_model(MODEL)
    with _restored_threads():
        encoder, engine = build_text_encoder(model, num_threads=THREADS), build_engine(model)
        decoder = build_decoder(model)
        for number, params in enumerate(requests):
            cond, uncond = encoder.encode([params.prompt, params.negative_prompt])
            engine.add(str(number), params, cond, uncond)
        outcomes = drain(engine)
        latents = [latents_of(outcomes[str(number)]) for number in range(len(requests))]
        return np.stack(decode(decoder, latents))


def digests_of(images: np.ndarray) -> list[str]:
    """The digest of the pixels of each image."""
    return [hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16] for pixels in images]


def halved(images: np.ndarray) -> np.ndarray:
    """The mean of every four pixels (N, H / 2, W / 2, 3) uint8."""
    count, height, width, _ = images.shape
    means: np.ndarray = images.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    return means.round().astype(np.uint8)


def write_sheet(images: np.ndarray) -> None:
    """Write images (N, H, W, 3) at half their size as one lossless file."""
    tiles = halved(images)
    count, height, width, _ = tiles.shape
    rows = tiles.reshape(count // COLUMNS, COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(rows.reshape(-1, COLUMNS * width, 3))
    sheet.save(SHEET, lossless=True, quality=100, method=6)


def reference_images() -> np.ndarray:
    """The committed images at half their size (N, H / 2, W / 2, 3) uint8."""
    sheet = np.asarray(Image.open(SHEET).convert("RGB"))
    side = SIDE // 2
    return sheet.reshape(-1, side, COLUMNS, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)


def _read_request(fields: dict[str, Any]) -> GenerationParams:
    defaults: dict[str, Any] = {"negative_prompt": "", "width": SIDE, "height": SIDE, "guidance_scale": 5.0}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return GenerationParams(**defaults | fields)


def _processor() -> str:
    """Vendor, family and model; the name is no use, because virtual machines shorten it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    pairs = (line.partition(":") for line in info.read_text().split("\n\n")[0].splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    return " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))


@contextmanager
def _restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
