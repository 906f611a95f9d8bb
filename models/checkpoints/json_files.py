"""What can be read of a checkpoint folder without torch: its JSON files, and how it can be wrong."""

import json
from pathlib import Path
from typing import Any

CLIP_CONFIG = "open_clip_config.json"


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message names the file or the tensor at fault."""


class _SaidTwice(ValueError):
    """A key that an object has twice: readers would take the one or the other."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; `CheckpointError` if it is missing or not JSON, or says a thing twice."""
    if path.exists() and not path.is_file():  # reading a pipe would wait for its other end
        raise CheckpointError(f"{path} is not a file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except _SaidTwice as error:
        raise CheckpointError(f"{path} says {error} twice") from None
    except ValueError as error:  # its own, and what is not UTF-8
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _SaidTwice(next(key for key in keys if keys.count(key) > 1))
    return content
