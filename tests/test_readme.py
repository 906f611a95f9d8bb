"""Every command in the README and the user pages gives the right answer, against a live service."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import safelight
from safelight.service.cli import COMMANDS
from tests.deploy.manifests import PROJECT
from tests.live import LiveService, user_environment
from tests.readme_answers import EXPECTATIONS, Answer, check_drawing, expectation_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/api.md", "docs/install.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
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


@pytest.fixture(scope="module")
def pipeline() -> Iterator[safelight.Pipeline]:
    """The model in this process, which draws what the commands must draw."""
    with safelight.Pipeline("emoji-128") as loaded:
        yield loaded


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


def test_the_extras_are_those_of_the_project() -> None:
    section = TEXT["docs/install.md"].split("## Extras")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(PROJECT["optional-dependencies"])


def test_the_versions_of_torch_and_python_are_those_of_the_project() -> None:
    page, makefile = TEXT["docs/install.md"], (ROOT / "Makefile").read_text(encoding="utf-8")
    (spec,) = re.findall(r"^TORCH_SPEC \?= (.*)$", makefile, re.MULTILINE)
    assert f'make install TORCH_SPEC="{spec} --index-url $CPU_INDEX"' in page
    low, high = re.findall(r"Python (3\.\d+) to (3\.\d+)", page)[0]
    versions = SpecifierSet(PROJECT["requires-python"])
    beyond = f"3.{int(high.split('.')[1]) + 1}"
    assert [v in versions for v in ("3.10", low, high, beyond)] == [False, True, True, False]


def test_the_readme_is_short() -> None:
    assert len(TEXT["README.md"].split()) <= MAX_README_WORDS


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_every_command_has_one_expectation() -> None:
    expected = [expectation_of(command.text) for command in RUNNABLE]
    assert sorted(map(EXPECTATIONS.index, expected)) == list(range(len(EXPECTATIONS)))


@pytest.mark.parametrize("command", RUNNABLE, ids=lambda command: command.text.splitlines()[0][:60])
def test_command(
    command: Command, live_service: LiveService, folder: Path, pipeline: safelight.Pipeline
) -> None:
    expectation = expectation_of(command.text)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    stdout = _run(command, live_service, folder)
    written = {path.name for path in folder.iterdir() if before.get(path.name) != path.stat().st_mtime_ns}
    assert written == {drawing.file for drawing in expectation.drawings} | set(expectation.other_files)
    answer = Answer(stdout, folder, pipeline)
    for drawing in expectation.drawings:
        check_drawing(drawing, answer)
    expectation.check(answer)


def _run(command: Command, live_service: LiveService, folder: Path) -> str:
    """What the command prints, with the port of the live service in place of the page's."""
    shell = ["bash", "-euo", "pipefail", "-c"] if command.language == "sh" else [sys.executable, "-c"]
    text = command.text.replace("localhost:8000", f"127.0.0.1:{live_service.port}")
    text = re.sub(r"\bcurl ", "curl --fail-with-body ", text)
    done = subprocess.run(
        [*shell, text], cwd=folder, env=user_environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout
