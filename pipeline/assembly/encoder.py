"""The text encoder of a checkpoint."""

import torch

from safelight.models.families.registry import recognise
from safelight.pipeline.assembly.device import fast_device, fast_dtype, set_threads
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.text_encoder import TextEncoder


def build_text_encoder(
    model: ModelInfo, *, num_threads: int | None = None, dtype: torch.dtype | None = None
) -> TextEncoder:
    """The text parts of `model`; `dtype`, which the embedded tower does not ask for, defaults to what the device does fast."""
    set_threads(num_threads)
    conditioning = recognise(model.path).conditioning
    return TextEncoder(conditioning.load_tower(model.path, fast_device(), dtype or fast_dtype()))
