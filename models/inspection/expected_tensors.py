"""The names and shapes that the files of each part of a checkpoint must hold. No weight is read."""

from pathlib import Path

from safelight.models import denoisers
from safelight.models.autoencoders import loading
from safelight.models.checkpoints.tensors import WEIGHTS, PartFiles, Shapes, shapes_of
from safelight.models.families.spec import TRANSFORMER, Part


def _network_shapes(folder: Path) -> Shapes:
    return shapes_of(denoisers.build_empty(folder).state_dict())


def _vae_shapes(folder: Path) -> Shapes:
    return shapes_of(loading.build_empty(folder).state_dict())


NETWORK_FILES = PartFiles(WEIGHTS, _network_shapes)
VAE_FILES = PartFiles(WEIGHTS, _vae_shapes)


def files_of(part: Part) -> PartFiles:
    """How the files of `part` are checked; imports the library of a text encoder."""
    if part.load_files is not None:
        return part.load_files()
    return NETWORK_FILES if part is TRANSFORMER else VAE_FILES
