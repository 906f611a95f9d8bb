"""The lists of mutants: TOML files in this folder, one for each part of the product."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent


class InvalidMutant(ValueError):
    """A mutant that does not fit the tree; the message names it."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one file, and the tests that should fail on it."""

    group: str  # the list that it is in
    name: str
    file: str  # relative to the root
    old: str  # occurs once in the file
    new: str
    tests: tuple[str, ...]  # test files or ids, relative to the root
    survives: str | None = None  # why no test fails; None: one does

    @property
    def title(self) -> str:
        return f"{self.group}/{self.name}"

    def apply(self, text: str) -> str:
        """The text of the file with the change; raises `InvalidMutant` unless `old` occurs once."""
        if (count := text.count(self.old)) != 1:
            raise InvalidMutant(f"{self.title}: the old text occurs {count} times in {self.file}, not once")
        return text.replace(self.old, self.new)

    @property
    def test_files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(test.partition("::")[0] for test in self.tests))


def load_mutants(folder: Path = FOLDER) -> list[Mutant]:
    """All mutants, list by list."""
    return [mutant for path in sorted(folder.glob("*.toml")) for mutant in _read(path)]


def _read(path: Path) -> Iterator[Mutant]:
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
        yield Mutant(path.stem, **(entry | {"tests": tuple(entry["tests"])}))
