"""Every command in the README and the user pages runs against a live service; their tables match the code."""

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

from safelight.service.cli import COMMANDS
from safelight.service.http.schemas import ImageRequest
from tests.live import LiveService

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/api.md", "docs/install.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
EVERY_PAGE = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "deploy/README.md",
    ROOT / "loadtests/README.md",
]
MAX_README_WORDS = 900

# Commands that install or start something: other tests and continuous integration run them.
EXEMPT = {
    "make serve",
    "make test",
    'make install TORCH_SPEC="torch==2.14.1 torchvision==0.29.1 --index-url $CPU_INDEX"',
}


@dataclass(frozen=True)
class Command:
    """A command as it is written on a page."""

    language: str
    text: str


def commands() -> list[Command]:
    """The commands in page order: a line of a `sh` block and its continuations, or a `python` block."""
    result = []
    for text in TEXT.values():
        for language, block in re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            texts = [block] if language == "python" else re.findall(r"(?:.*(?:\\|\|)\n)*.+\n", block)
            result += [Command(language, text.strip()) for text in texts]
    return result


RUNNABLE = [command for command in commands() if command.text not in EXEMPT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone after `make install`, as far as the commands can see."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_that_is_run(page: str) -> None:
    fences = re.findall(r"^```", TEXT[page], re.MULTILINE)
    assert len(fences) == 2 * len(re.findall(r"^```(?:sh|python)$", TEXT[page], re.MULTILINE))


def test_the_exempt_commands_are_on_the_pages() -> None:
    assert {command.text for command in commands()} >= EXEMPT


def test_the_make_targets_are_those_of_the_makefile() -> None:
    phony = " ".join(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)`", TEXT["docs/install.md"])) == set(phony.split()) - {"help"}


def test_the_commands_are_those_of_the_command_line() -> None:
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| ", TEXT["docs/api.md"].split("## The command line")[1], re.MULTILINE
    )
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(COMMANDS)


def test_the_readme_is_short() -> None:
    assert len(TEXT["README.md"].split()) <= MAX_README_WORDS


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


@pytest.mark.parametrize("command", RUNNABLE, ids=lambda command: command.text.splitlines()[0][:60])
def test_command(command: Command, live_service: LiveService, folder: Path) -> None:
    before = set(folder.iterdir())
    shell = ["bash", "-euo", "pipefail", "-c"] if command.language == "sh" else [sys.executable, "-c"]
    text = command.text.replace("localhost:8000", f"127.0.0.1:{live_service.port}")
    text = text.replace("curl -s ", "curl -s --fail-with-body ")
    done = subprocess.run(
        [*shell, text], cwd=folder, env=_environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if "--json" in text:
        json.loads(done.stdout)
    files = set(folder.iterdir()) - before
    assert files or done.stdout.strip() or "-o " in text or ".save(" in text, "the command has no effect"
    for path in files:
        _check_file(path)


def test_every_field_of_a_request_is_documented() -> None:
    page = TEXT["docs/api.md"].split("## The response")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    (ignored,) = re.findall(r"and ignored: (.*)\.$", page, re.MULTILINE)
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
    """The environment of a user's shell: without the variables that help Python find packages."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
