"""Every command in the README is run against a live service, and its table of fields is the one that the service has."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from safelight.service.http.schemas import ImageRequest
from tests.live import LiveService

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Commands that install or start: other tests and continuous integration run them.
EXEMPT = {
    "make serve",
    "make test",
    'make install TORCH_SPEC="torch==2.14.1 torchvision==0.29.1 --index-url $CPU_INDEX"',
}


@dataclass(frozen=True)
class Command:
    """A command of the README, as it stands there."""

    language: str
    text: str


def commands() -> list[Command]:
    """The commands of the README in their order: a line of a `sh` block with its continuations, a whole `python` block."""
    found = []
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        texts = [block] if language == "python" else re.findall(r"(?:.*(?:\\|\|)\n)*.+\n", block)
        found += [Command(language, text.strip()) for text in texts]
    return found


RUNNABLE = [command for command in commands() if command.text not in EXEMPT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place that looks like a clone after `make install`, as far as the commands can see."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


def test_every_block_has_a_language_that_is_run():
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * len(
        re.findall(r"^```(?:sh|python)$", README, re.MULTILINE)
    )


def test_the_exempt_commands_are_in_the_readme():
    assert {command.text for command in commands()} >= EXEMPT


def test_the_verbs_are_those_of_the_makefile():
    (phony,) = re.findall(r"^\.PHONY: help (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z0-9]+)", README, re.MULTILINE)) == set(phony.split())


@pytest.mark.parametrize("command", RUNNABLE, ids=lambda command: command.text.splitlines()[0][:60])
def test_command(command: Command, live_service: LiveService, folder: Path):
    before = set(folder.iterdir())
    shell = ["bash", "-euo", "pipefail", "-c"] if command.language == "sh" else [sys.executable, "-c"]
    text = command.text.replace("localhost:8000", f"127.0.0.1:{live_service.port}").replace(
        "curl -s ", "curl -s --fail-with-body "
    )
    done = subprocess.run(
        [*shell, text], cwd=folder, env=_environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if "--json" in text:
        json.loads(done.stdout)
    made = set(folder.iterdir()) - before
    assert made or done.stdout.strip(), "the command showed nothing"
    for path in made:
        _check_file(path)


def test_every_field_of_a_request_is_in_the_readme():
    documented = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    (ignored,) = re.findall(r"and ignored: (.*)\.$", README, re.MULTILINE)
    assert documented | set(re.findall(r"`(\w+)`", ignored)) == set(ImageRequest.model_fields)


def _check_file(path: Path) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"states", "mask"}
        return
    with Image.open(path) as image:
        image.load()
        assert f".{image.format}".lower() == path.suffix
        assert image.size == (128, 128)
        assert len(image.getcolors(2**16) or "many") > 16, "the image is blank"


def _environment() -> dict[str, str]:
    """The tests' own, without what would let the commands find more than a user's shell does."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
