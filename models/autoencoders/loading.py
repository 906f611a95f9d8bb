"""Autoencoders from a checkpoint folder: built empty, filled strictly."""

from pathlib import Path

import torch

from safelight.models.autoencoders.interface import Autoencoder
from safelight.models.autoencoders.kl import AutoencoderKL
from safelight.models.autoencoders.options import KLOptions, Options, read_options
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.checkpoints.json_files import read_json
from safelight.models.checkpoints.options import find_unknown, read_known
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import WEIGHTS, load_into


def build(options: Options) -> Autoencoder:
    """The autoencoder with `options`, not trained."""
    return AutoencoderKL(options) if isinstance(options, KLOptions) else AutoencoderTiny(options)


def build_empty(folder: Path, choices: ReadOptions = DEFAULT_READ_OPTIONS) -> Autoencoder:
    """The autoencoder in `folder` without its weights, on the meta device.

    Raises `CheckpointError` for a class or an option that is not supported and for a value of the wrong type.
    """
    path = folder / "config.json"
    options = read_known(read_options, read_json(path), path, choices)
    with torch.device("meta"):
        return build(options)


def unknown_options(folder: Path) -> tuple[str, ...]:
    """The options of the autoencoder in `folder` that are not known."""
    return find_unknown(read_options, read_json(folder / "config.json"))


def load_vae(
    folder: Path, device: str, dtype: torch.dtype, choices: ReadOptions = DEFAULT_READ_OPTIONS
) -> Autoencoder:
    """The autoencoder in `folder`, with its weights on `device` in `dtype`.

    Raises `CheckpointError` as `build_empty` does, and unless the files hold exactly its tensors.
    """
    return load_into(build_empty(folder, choices), folder, device, dtype, WEIGHTS, choices)
