"""Prompts to images through the engine that serves, many at a time, each kept as soon as it is drawn."""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.model_info import ModelInfo, check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.params import GenerationParams

WAITING = 16  # samples ready for the engine: each holds its text's keys and values


class Renderer:
    """Draws what it is asked for; with a folder to keep images in, it draws none twice."""

    def __init__(self, model: ModelInfo, keep: Path | None = None, quantization: str = "none"):
        self._encoder, self._decoder = build_text_encoder(model), build_decoder(model)
        self._engine = build_engine(model, quantization=quantization)
        self._model = model
        self._keep = keep
        self._weights = _digest(model.path) + ("" if quantization == "none" else quantization) if keep else ""

    def draw(
        self, images: Sequence[GenerationParams], progress: Callable[[int], None] = lambda num: None
    ) -> np.ndarray:
        """One image each, in order: (P, H, W, 3) uint8; all of one size. `progress` is told how many are there.

        Raises `InvalidParams` before anything is drawn, `RuntimeError` for a sample that diverged.
        """
        for params in images:
            check_params(params, self._model)
            plan_request(params, self._model)
        drawn = {i: kept for i, params in enumerate(images) if (kept := self._kept(params)) is not None}
        progress(len(drawn))
        missing = deque(i for i in range(len(images)) if i not in drawn)
        while missing or self._engine.has_work:
            while missing and self._engine.num_waiting < WAITING:
                self._add(missing[0], images[missing.popleft()])
            for outcome in self._engine.step():
                i = int(outcome.request_id)
                if outcome.latents is None:
                    raise RuntimeError(f"{images[i].prompt}: {outcome.error}")
                image = self._decoder.decode([outcome.latents])[0]
                if isinstance(image, InvalidImage):
                    raise RuntimeError(f"{images[i].prompt}: {image}")
                drawn[i] = image[0]
                self._put_away(images[i], drawn[i])
                progress(len(drawn))
        return np.stack([drawn[i] for i in range(len(images))])

    def _add(self, number: int, params: GenerationParams) -> None:
        cond, uncond = self._encoder.encode([params.prompt, params.negative_prompt])
        self._engine.add(str(number), params, cond, uncond)

    def _kept(self, params: GenerationParams) -> np.ndarray | None:
        if self._keep is None or not (file := self._file(self._keep, params)).exists():
            return None
        return np.asarray(Image.open(file).convert("RGB"))

    def _put_away(self, params: GenerationParams, pixels: np.ndarray) -> None:
        if self._keep is not None:
            file = self._file(self._keep, params)
            partial = file.with_suffix(".partial")
            Image.fromarray(pixels).save(partial, "PNG")
            partial.replace(file)  # an interruption never leaves half an image

    def _file(self, folder: Path, params: GenerationParams) -> Path:
        """Named by the text, to be found, and by all that decides the bytes, to be right."""
        words = "-".join("".join(c if c.isalnum() else " " for c in params.prompt).split())[:60]
        return folder / f"{words}-{hashlib.sha256(f'{self._weights} {params}'.encode()).hexdigest()[:12]}.png"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
