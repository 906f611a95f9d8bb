"""Render prompts to images through the serving engine; a folder of finished images lets a run resume."""

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

MAX_QUEUED = 16  # samples queued in the engine: each holds its text's keys and values


class Renderer:
    """Renders images; with a folder to keep them in, it renders none twice."""

    def __init__(self, model: ModelInfo, folder: Path | None = None, quantization: str = "none"):
        self._encoder, self._decoder = build_text_encoder(model), build_decoder(model)
        self._engine = build_engine(model, quantization=quantization)
        self._model = model
        self._folder = folder
        quantized = "" if quantization == "none" else quantization
        # of all weight files, whichever variant is read
        self._weights = _digest(model.path) + model.read_options.variant + quantized if folder else ""

    def render(
        self, requests: Sequence[GenerationParams], progress: Callable[[int], None] = lambda num: None
    ) -> np.ndarray:
        """Render one image for each request, all of one size.

        `progress` is called with the number of images that are ready.

        Returns:
            The images in order, (P, H, W, 3) uint8.

        Raises:
            InvalidParams: a request is invalid; no image is rendered.
            RuntimeError: a sample diverged.
        """
        for params in requests:
            check_params(params, self._model)
            plan_request(params, self._model)
        images = {i: image for i, params in enumerate(requests) if (image := self._read(params)) is not None}
        progress(len(images))
        missing = deque(i for i in range(len(requests)) if i not in images)
        while missing or self._engine.has_work:
            while missing and self._engine.num_waiting < MAX_QUEUED:
                self._add(missing[0], requests[missing.popleft()])
            for outcome in self._engine.step():
                i = int(outcome.request_id)
                if outcome.latents is None:
                    raise RuntimeError(f"{requests[i].prompt}: {outcome.error}")
                decoded = self._decoder.decode([outcome.latents])[0]
                if isinstance(decoded, InvalidImage):
                    raise RuntimeError(f"{requests[i].prompt}: {decoded}")
                images[i] = decoded[0]
                self._write(requests[i], images[i])
                progress(len(images))
        return np.stack([images[i] for i in range(len(requests))])

    def _add(self, index: int, params: GenerationParams) -> None:
        cond, uncond = self._encoder.encode([params.prompt, params.negative_prompt])
        self._engine.add(str(index), params, cond, uncond)

    def _read(self, params: GenerationParams) -> np.ndarray | None:
        if self._folder is None or not (file := self._file(self._folder, params)).exists():
            return None
        return np.asarray(Image.open(file).convert("RGB"))

    def _write(self, params: GenerationParams, pixels: np.ndarray) -> None:
        if self._folder is not None:
            file = self._file(self._folder, params)
            partial = file.with_suffix(".partial")
            Image.fromarray(pixels).save(partial, "PNG")
            partial.replace(file)  # an interruption never leaves half an image

    def _file(self, folder: Path, params: GenerationParams) -> Path:
        """The file's name has the prompt's words, for people, and a digest of all that decides its bytes."""
        words = "-".join("".join(c if c.isalnum() else " " for c in params.prompt).split())
        words = words.encode()[:60].decode(errors="ignore")  # file systems limit bytes
        return folder / f"{words}-{hashlib.sha256(f'{self._weights} {params}'.encode()).hexdigest()[:12]}.png"


def _digest(folder: Path) -> str:
    """The SHA-256 of all weights in a checkpoint folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
