"""The README and the user pages list what there is: commands, targets, extras, versions, pages."""

import re

import pytest
from packaging.specifiers import SpecifierSet

from safelight.service.cli import COMMANDS
from tests.deploy.manifests import PROJECT
from tests.readme.answers import EXPECTATIONS, expectation_of
from tests.readme.commands import EXEMPT, PAGES, ROOT, TEXT, commands, runnable_commands

MAX_README_WORDS = 900


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
    expected = [expectation_of(command.text) for command in runnable_commands()]
    assert sorted(map(EXPECTATIONS.index, expected)) == list(range(len(EXPECTATIONS)))
