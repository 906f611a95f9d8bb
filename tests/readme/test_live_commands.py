"""Every command of the README and the user pages that calls the service gives the right answer."""

from pathlib import Path

import pytest

import safelight
from tests.live import LiveService
from tests.readme.commands import Command, check_command, runnable_commands, title

COMMANDS = [command for command in runnable_commands() if command.is_live]


@pytest.fixture(scope="module", autouse=True)
def red_apple(folder: Path, pipeline: safelight.Pipeline) -> None:
    """The file that the edits start from, as the README's block in Python writes it."""
    (image,) = pipeline.generate("a red apple", seed=1)
    (folder / "red-apple.png").write_bytes(image.bytes)


@pytest.mark.parametrize("command", COMMANDS, ids=title)
def test_command(
    command: Command, live_service: LiveService, folder: Path, pipeline: safelight.Pipeline
) -> None:
    check_command(command, folder, pipeline, live_service.port)
