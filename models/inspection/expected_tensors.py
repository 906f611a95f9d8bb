"""What the files of a part of a checkpoint must hold, by its kind: names and shapes from the configs alone, no weight is read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.models import denoisers, vae
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, WEIGHTS, Shapes, shapes_of
from safelight.models.text import clip, hf_clip, t5
from safelight.models.text.bpe import BytePairs
from safelight.models.text.hf_folder import HF_WEIGHTS


@dataclass(frozen=True, slots=True)
class PartKind:
    """How a part is known: its weight file, what that must hold, and the parts' tokenizer.

    `canonical` takes what a file holds, by name, to what `blueprint` asks for; `check_tokenizer` is given the folders of the
    part and of its tokenizer. Both, and `blueprint`, raise `CheckpointError`.
    """

    weights: str
    blueprint: Callable[[Path], Shapes]
    canonical: Callable[[dict[str, Any]], dict[str, Any]] = dict
    check_tokenizer: Callable[[Path, Path], object] | None = None


def _network(folder: Path) -> Shapes:
    return shapes_of(denoisers.build_empty(folder).state_dict())


def _vae(folder: Path) -> Shapes:
    return shapes_of(vae.build_empty(folder).state_dict())


def _check_clip_tokenizer(folder: Path, tokenizer: Path) -> None:
    BytePairs().read_folder(tokenizer)


def _t5(folder: Path) -> Shapes:
    shapes = t5.blueprint(folder)
    t5.build_empty(folder)  # for the options that only transformers reads
    return shapes


def _check_t5_tokenizer(folder: Path, tokenizer: Path) -> None:
    t5.load_tokenizer(tokenizer, t5.T5EncoderConfig.read(folder))


PART_KINDS = {
    "network": PartKind(WEIGHTS, _network),
    "vae": PartKind(WEIGHTS, _vae),
    "open_clip": PartKind(CLIP_WEIGHTS, clip.blueprint),
    "clip": PartKind(HF_WEIGHTS, hf_clip.blueprint, hf_clip.canonical, _check_clip_tokenizer),
    "t5": PartKind(HF_WEIGHTS, _t5, t5.canonical, _check_t5_tokenizer),
}
