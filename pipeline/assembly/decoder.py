"""Builds the image decoder of a model."""

import torch

from safelight.models.autoencoders.loading import load_vae
from safelight.pipeline.assembly.device import fast_device, fast_dtype, keep_precision, set_threads
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.image_decoder import ImageDecoder


def build_decoder(
    model: ModelInfo, *, num_threads: int | None = None, dtype: torch.dtype | None = None
) -> ImageDecoder:
    """The image decoder of `model`.

    Args:
        model: The model.
        num_threads: Threads of the kernels that the calling thread runs; None leaves the number to torch.
        dtype: Of the weights; by default what the device computes fast.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
    """
    set_threads(num_threads)
    keep_precision()
    dtype = dtype or fast_dtype()
    device = fast_device()
    vae = load_vae(model.path / "vae", str(device), dtype, model.read_options)
    # In place. Takes two thirds of the time on a processor (docs/performance.md).
    vae.to(memory_format=torch.channels_last)
    return ImageDecoder(vae, dtype, device)
