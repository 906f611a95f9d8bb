"""The names and shapes that the files of each part of a checkpoint must hold. No weight is read."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from safelight.models import denoisers
from safelight.models.autoencoders import loading
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import WEIGHTS, PartFiles, Shapes, shapes_of
from safelight.models.families.spec import TRANSFORMER, Part


def _network_shapes(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> Shapes:
    return shapes_of(denoisers.build_empty(folder, options).state_dict())


def _vae_shapes(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> Shapes:
    return shapes_of(loading.build_empty(folder, options).state_dict())


NETWORK_FILES = PartFiles(WEIGHTS, _network_shapes, unknown_options=denoisers.unknown_options)
VAE_FILES = PartFiles(WEIGHTS, _vae_shapes, unknown_options=loading.unknown_options)


def files_of(part: Part, options: ReadOptions = DEFAULT_READ_OPTIONS) -> PartFiles:
    """How the files of `part` are checked; imports the library of a text encoder."""
    if part.load_files is not None:
        return part.load_files()
    if part is TRANSFORMER:
        return replace(NETWORK_FILES, expected_shapes=partial(_network_shapes, options=options))
    return replace(VAE_FILES, expected_shapes=partial(_vae_shapes, options=options))
