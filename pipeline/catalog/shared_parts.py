"""Whether two models have equal text encoders or autoencoders, so that one of them can serve both.

No torch is imported here, and no digest is kept: files of one size are compared byte by byte.
"""

import filecmp
from dataclasses import replace
from pathlib import Path

from safelight.models.checkpoints.json_files import read_json
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.checkpoints.weight_files import list_variants
from safelight.models.families.registry import recognise
from safelight.models.families.spec import VAE, has_part
from safelight.pipeline.catalog.model_info import ModelInfo

LABELS = "id2label"  # of model_index.json: the classes that a class-conditional model knows


def has_same_text_encoder(one: ModelInfo, other: ModelInfo) -> bool:
    """Whether both models read a text alike: one family, and equal files of every encoder and tokenizer."""
    if one.family != other.family:
        return False
    if read_json(one.path / "model_index.json").get(LABELS) != read_json(other.path / "model_index.json").get(
        LABELS
    ):
        return False
    for part in recognise(one.path).conditioning.parts:
        if has_part(one.path, part) != has_part(other.path, part):
            return False
        folders = [part.folder] if part.tokenizer is None else [part.folder, part.tokenizer]
        if has_part(one.path, part) and not all(_is_same_folder(one, other, name) for name in folders):
            return False
    return True


def has_same_autoencoder(one: ModelInfo, other: ModelInfo) -> bool:
    """Whether both models have equal files of the autoencoder."""
    return _is_same_folder(one, other, VAE.folder)


def _is_same_folder(one: ModelInfo, other: ModelInfo, name: str) -> bool:
    """Whether the folder `name` of both checkpoints is read alike, and holds the same files."""
    first, second = (one.path / name).resolve(), (other.path / name).resolve()
    if _choices(one, first) != _choices(other, second):
        return False
    if first == second:
        return True
    files = _list_files(first)
    return files == _list_files(second) and all(_is_same_file(first / file, second / file) for file in files)


def _choices(model: ModelInfo, folder: Path) -> ReadOptions:
    """How `model` reads the part in `folder`: a variant that the part does not have makes no difference."""
    options = model.read_options
    return options if options.variant in list_variants([folder]) else replace(options, variant="")


def _list_files(folder: Path) -> list[Path]:
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


def _is_same_file(one: Path, other: Path) -> bool:
    """Links to one file, such as a blob of the Hugging Face cache, are not read."""
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
