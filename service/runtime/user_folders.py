"""Folders of this user, by the XDG base directories."""

import os
from pathlib import Path


def user_data() -> Path:
    """The folder for data; a relative path in its variable is to be ignored.

    Raises `RuntimeError` if this user has no home folder.
    """
    folder = Path(os.environ.get("XDG_DATA_HOME", ""))
    return folder if folder.is_absolute() else Path.home() / ".local" / "share"
