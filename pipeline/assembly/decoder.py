"""The decoder of a checkpoint."""

import torch

from safelight.models.vae import load_vae
from safelight.pipeline.assembly.device import fast_device, fast_dtype, set_threads
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.image_decoder import ImageDecoder


def build_decoder(
    model: ModelInfo, *, num_threads: int | None = None, dtype: torch.dtype | None = None
) -> ImageDecoder:
    """The autoencoder of `model`."""
    set_threads(num_threads)
    dtype = dtype or fast_dtype()
    device = fast_device()
    vae = load_vae(model.path / "vae", str(device), dtype)
    vae.to(
        memory_format=torch.channels_last
    )  # in place; two thirds of the time on a processor (docs/performance.md)
    return ImageDecoder(vae, dtype, device)
