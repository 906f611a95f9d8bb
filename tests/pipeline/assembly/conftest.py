"""Checkpoint folders that are written once, and copies of them for a test to change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.folders import write_dit, write_pixart, write_sd3

WRITERS: dict[str, Callable[[Path], object]] = {"sigma": write_pixart, "sd3": write_sd3, "dit": write_dit}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, write in WRITERS.items():
        write(folders[name])
    return folders


@pytest.fixture
def copied(written: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda family: shutil.copytree(written[family], tmp_path / "model")
