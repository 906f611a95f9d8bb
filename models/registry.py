"""Which models there are and how a checkpoint folder is recognised. No torch here: the gateway reads it too.

A checkpoint is a diffusers-layout folder, the embedded ones included; what such a folder cannot say (defaults, sizes,
licence) stands here.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.folder import CLIP_CONFIG, CheckpointError, read_json

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class Family:
    """How the checkpoints of a family are served when nothing is asked for."""

    name: str
    num_steps: int
    guidance_scale: float
    solver: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be served: a folder, the family it belongs to and the sizes (width, height) that it draws."""

    id: str
    folder: Path
    family: Family
    sizes: tuple[tuple[int, int], ...]
    licence: str


# docs/solvers.md: of the solvers never worse than Euler from ten evaluations on, dpmpp_2m and unipc_2 are the most exact, and
# as good as each other on 150 names with earlier weights; of the scales 3, 5 and 7 none is surely better on them, and 5 was highest
PIXART_CLIP = Family("pixart-clip", num_steps=20, guidance_scale=5.0, solver="dpmpp_2m")

EMBEDDED = {"emoji-128": "weights: Apache-2.0; trained on Fluent Emoji (MIT) and Noto Emoji (Apache-2.0)"}
TINY = "tiny"  # random weights, drawn from a fixed seed: for tests of everything but the pictures


def find_checkpoint(name_or_dir: str) -> Checkpoint:
    """An embedded model by its name, `tiny`, or any folder; raise `CheckpointError` saying what is wrong and what there is."""
    if name_or_dir == TINY:
        from models.tiny import ensure_tiny  # torch, only where it is asked for

        ensure_tiny()
        return read_checkpoint(TINY, tiny_folder(), "none: random weights")
    if name_or_dir in EMBEDDED:
        return read_checkpoint(name_or_dir, WEIGHTS_FOLDER / name_or_dir, EMBEDDED[name_or_dir])
    folder = Path(name_or_dir).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"model {name_or_dir!r} is neither a folder nor one of {', '.join((*EMBEDDED, TINY))}")
    return read_checkpoint(folder.resolve().name, folder.resolve(), "see the folder")


def read_checkpoint(model_id: str, folder: Path, licence: str) -> Checkpoint:
    """Recognise `folder` by its `model_index.json`; raise `CheckpointError` if no family claims it."""
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name")
    if pipeline != "PixArtSigmaPipeline" or not (folder / "text_encoder" / CLIP_CONFIG).exists():
        raise CheckpointError(
            f"{folder}: {pipeline!r} with this text encoder is not supported; supported: PixArtSigmaPipeline with an open_clip text_encoder"
        )
    transformer = read_json(folder / "transformer" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    side = transformer.get("sample_size", 128) * spatial_compression(vae)
    return Checkpoint(model_id, folder, PIXART_CLIP, ((side, side),), licence)


def spatial_compression(vae_config: dict) -> int:
    """How many pixels on a side one latent pixel stands for."""
    channels = vae_config.get("block_out_channels") or vae_config.get("decoder_block_out_channels")
    if not channels:
        raise CheckpointError("vae/config.json names no block_out_channels")
    return int(2 ** (len(channels) - 1))


def tiny_folder() -> Path:
    """Where the `tiny` preset lies once `models.tiny.ensure_tiny` has written it: one folder a user and format."""
    return Path(tempfile.gettempdir()) / f"safelight-{TINY}-v2-{os.getuid()}"
