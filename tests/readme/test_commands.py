"""Every command of the README and the user pages that needs no service gives the right answer."""

from pathlib import Path

import pytest

import safelight
from tests.readme.commands import Command, check_command, runnable_commands, title

COMMANDS = [command for command in runnable_commands() if not command.is_live]


@pytest.mark.parametrize("command", COMMANDS, ids=title)
def test_command(command: Command, folder: Path, pipeline: safelight.Pipeline) -> None:
    check_command(command, folder, pipeline)
