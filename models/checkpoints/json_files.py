"""The JSON files of a checkpoint folder, read strictly. No torch is imported here."""

import json
from pathlib import Path
from typing import Any

from safelight.models.checkpoints.missing_files import describe_missing

CLIP_CONFIG = "open_clip_config.json"


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message names the file or the tensor at fault."""


class _DuplicateKey(ValueError):
    """A key that occurs twice in one object. Which of its values counts would depend on the reader."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises `CheckpointError` if the file is missing, is not a JSON object, or repeats a key.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait for its other end
        raise CheckpointError(f"{path} is not a file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise CheckpointError(f"{path} {describe_missing(path)}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except _DuplicateKey as error:
        raise CheckpointError(f"{path} says {error} twice") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def spatial_compression(vae_config: dict[str, Any]) -> int:
    """Image pixels on a side of one latent pixel, from an autoencoder's `config.json`.

    Raises `CheckpointError` if the config does not list its blocks' channels.
    """
    channels = vae_config.get("block_out_channels") or vae_config.get("decoder_block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise CheckpointError(
            f"vae/config.json: block_out_channels is {channels!r}, expected a list of numbers of channels"
        )
    return int(2 ** (len(channels) - 1))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return content
