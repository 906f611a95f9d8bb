"""Builds the text encoder of a model."""

import torch

from safelight.models.families.registry import recognise
from safelight.pipeline.assembly.device import fast_device, fast_dtype, keep_precision, set_threads
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.text_encoder import TextEncoder


def import_libraries(model: ModelInfo) -> None:
    """Import the libraries that the text encoder of `model` needs, before threads load networks."""
    recognise(model.path).conditioning.import_libraries()


def build_text_encoder(
    model: ModelInfo, *, num_threads: int | None = None, dtype: torch.dtype | None = None
) -> TextEncoder:
    """The text encoder of `model`.

    Args:
        model: The model.
        num_threads: Threads of the kernels that the calling thread runs; None leaves the number to torch.
        dtype: Of the weights; by default what the device computes fast. The embedded model ignores it.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    set_threads(num_threads)
    keep_precision()
    conditioning = recognise(model.path).conditioning
    tower = conditioning.load_tower(model.path, fast_device(), dtype or fast_dtype(), model.read_options)
    return TextEncoder(tower)
