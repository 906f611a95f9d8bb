"""Copies of the tree in which one mutant at a time is made. The working tree itself is never changed."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.catalogue import ROOT, Mutant

_ages = itertools.count(1)


class Workspace:
    """A copy of every file that git does not ignore, and a folder for temporary files.

    Args:
        folder: An empty folder.
        temporary_files: What the folder for temporary files holds at the start of each run.
    """

    def __init__(self, folder: Path, temporary_files: Path):
        self.tree, self.temporary = folder / "tree", folder / "temporary"
        self._temporary_files = temporary_files
        for name in list_files():
            target = self.tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)

    @contextmanager
    def changed(self, mutant: Mutant | None) -> Iterator[None]:
        """The tree has the change of `mutant` within the block; nothing that earlier runs wrote is there."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        shutil.copytree(self._temporary_files, self.temporary)
        shutil.rmtree(self.tree / ".hypothesis", ignore_errors=True)
        if mutant is None:
            yield
            return
        file = self.tree / mutant.file
        text, times = file.read_text(encoding="utf-8"), file.stat()
        file.write_text(mutant.apply(text), encoding="utf-8")
        # Python recognises a stale .pyc file by whole seconds: no two versions may have the same time.
        os.utime(file, (times.st_atime, int(times.st_mtime) + 10 * next(_ages)))
        try:
            yield
        finally:
            file.write_text(text, encoding="utf-8")
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def list_files() -> list[str]:
    """The files that git tracks or would track, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [name for name in listed.split("\0") if name and os.path.lexists(ROOT / name)]
