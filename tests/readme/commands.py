"""The commands of the README and the user pages, as they are written there, and how the tests run them."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import safelight
from tests.live import user_environment
from tests.readme.answers import Answer, check_drawing, expectation_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/api.md", "docs/install.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
ADDRESS = "localhost:8000"  # of the service, on the pages

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

    @property
    def is_live(self) -> bool:
        """Whether it calls the service."""
        return ADDRESS in self.text


def commands() -> list[Command]:
    """The commands in page order: a line of a `sh` block and its continuations, or a `python` block."""
    result = []
    for text in TEXT.values():
        for language, block in re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            texts = [block] if language == "python" else re.findall(r"(?:.*(?:\\|\|)\n)*.+\n", block)
            result += [Command(language, text.strip()) for text in texts]
    return result


def runnable_commands() -> list[Command]:
    return [command for command in commands() if command.text not in EXEMPT]


def title(command: Command) -> str:
    """The name of the command's test."""
    return command.text.splitlines()[0][:60]


def check_command(command: Command, folder: Path, pipeline: safelight.Pipeline, port: int = 0) -> None:
    """Run the command in `folder`, with the service at `port`, and require the expected answer and files."""
    expectation = expectation_of(command.text)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    stdout = _run(command, folder, port)
    written = {path.name for path in folder.iterdir() if before.get(path.name) != path.stat().st_mtime_ns}
    assert written == {drawing.file for drawing in expectation.drawings} | set(expectation.other_files)
    answer = Answer(stdout, folder, pipeline)
    for drawing in expectation.drawings:
        check_drawing(drawing, answer)
    expectation.check(answer)


def _run(command: Command, folder: Path, port: int) -> str:
    """What the command prints, with the port of the service in place of the page's."""
    shell = ["bash", "-euo", "pipefail", "-c"] if command.language == "sh" else [sys.executable, "-c"]
    text = command.text.replace(ADDRESS, f"127.0.0.1:{port}")
    text = re.sub(r"\bcurl ", "curl --fail-with-body ", text)
    done = subprocess.run(
        [*shell, text], cwd=folder, env=user_environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout
