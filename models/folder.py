"""What can be read of a checkpoint folder without torch: its JSON files, and how it can be wrong."""

import json
from pathlib import Path
from typing import Any

CLIP_CONFIG = "open_clip_config.json"


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be loaded; the message names the file or the tensor at fault."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; `CheckpointError` if it is missing or not JSON."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content
