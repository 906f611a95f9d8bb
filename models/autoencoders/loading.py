"""Autoencoders from a checkpoint folder: built empty, filled strictly."""

from pathlib import Path

import torch

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.kl import AutoencoderKL
from safelight.models.autoencoders.options import KLOptions, Options, read_options
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.tensors import load_into


def build(options: Options) -> Autoencoder:
    """The autoencoder with `options`, not trained."""
    return AutoencoderKL(options) if isinstance(options, KLOptions) else AutoencoderTiny(options)


def build_empty(folder: Path) -> Autoencoder:
    """The autoencoder in `folder` without its weights, on the meta device.

    Raises `CheckpointError` for a class or an option that is not supported and for a value of the wrong type.
    """
    path = folder / "config.json"
    config = read_json(path)
    try:
        options = read_options(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with torch.device("meta"):
        return build(options)


def load_vae(folder: Path, device: str, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder in `folder`, with its weights on `device` in `dtype`.

    Raises `CheckpointError` as `build_empty` does, and unless the files hold exactly its tensors.
    """
    return load_into(build_empty(folder), folder, device, dtype)
