"""What the tests of the commands share: a folder to run them in, and the model to compare with."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import safelight


@pytest.fixture(scope="module")
def pipeline() -> Iterator[safelight.Pipeline]:
    """The model in this process, which draws what the commands must draw."""
    with safelight.Pipeline("emoji-128") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone after `make install`, as far as the commands can see."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone
