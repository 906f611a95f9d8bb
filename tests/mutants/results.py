"""Verdicts of earlier runs, so that only what has changed runs again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.catalogue import ROOT, Mutant
from tests.mutants.workspace import list_files

CAUGHT, TIMED_OUT, SURVIVED, INVALID = "caught", "timed out", "SURVIVED", "INVALID"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant. A hang is caught by its time limit."""

    verdict: str
    seconds: float

    @property
    def is_caught(self) -> bool:
        return self.verdict in (CAUGHT, TIMED_OUT)


class Results:
    """The verdicts in a JSON file, by a digest of the mutant, the mutated file and the tests' files.

    Verdicts on tests without any mutant are kept too, by a digest of the whole tree.

    Args:
        path: The file.
        is_fresh: Whether to forget what it holds.
    """

    def __init__(self, path: Path, is_fresh: bool = False):
        self._path = path
        self._verdicts: dict[str, dict[str, str | float]] = {}
        if path.exists() and not is_fresh:
            self._verdicts = json.loads(path.read_text())
        files = [name for name in list_files() if name.endswith(".py") and "tests/mutants/" not in name]
        # Fixtures and fakes, which every test may use.
        helpers = [
            name for name in files if name.startswith("tests/") and not Path(name).name.startswith("test_")
        ]
        self._tree, self._helpers = _digest_files(files), _digest_files(helpers)

    def get(self, key: str) -> Verdict | None:
        stored = self._verdicts.get(key)
        return None if stored is None else Verdict(str(stored["verdict"]), float(stored["seconds"]))

    def put(self, key: str, title: str, verdict: Verdict) -> None:
        """Keep a verdict, at once."""
        self._verdicts[key] = {"title": title, **asdict(verdict)}
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._verdicts, indent=1))
        partial.replace(self._path)

    def key_of_mutant(self, mutant: Mutant) -> str:
        files = (mutant.file, *mutant.test_files)
        return _digest(mutant.old, mutant.new, *mutant.tests, _digest_files(files), self._helpers)

    def key_of_tests(self, tests: Iterable[str]) -> str:
        return _digest(*tests, self._tree)


def _digest_files(names: Iterable[str]) -> str:
    return _digest(*(text for name in names for text in (name, (ROOT / name).read_text(encoding="utf-8"))))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
