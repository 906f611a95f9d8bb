"""What a child process does: it runs tests in a workspace, and its exit status is pytest's."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Packages of the tree: a child imports them from its workspace, whatever its parent has imported.
PACKAGES = ("tests", "loadtests", "safelight")


def run_tests(tree: Path, temporary: Path, log: Path, tests: Sequence[str]) -> None:
    """Run `tests` in `tree` and exit with pytest's status.

    Args:
        tree: The copy of the tree.
        temporary: Folder for temporary files.
        log: What the tests print.
        tests: Files or ids of tests, relative to `tree`.
    """
    _enter(tree, temporary, log)
    import pytest

    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins were imported by the parent
    status = pytest.main([*options, f"--basetemp={temporary / 'pytest'}", *tests])
    sys.stdout.flush()
    os._exit(int(status))  # threads that a mutant has left behind must not keep the process alive


def write_tiny(tree: Path, temporary: Path, log: Path) -> None:
    """Write the checkpoint `tiny` with unchanged code; tests find it in the folder for temporary files."""
    _enter(tree, temporary, log)
    from safelight.models.find_checkpoint import ensure_tiny

    ensure_tiny()


def _enter(tree: Path, temporary: Path, log: Path) -> None:
    os.setsid()  # so that processes that a test leaves behind can be ended together
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    sys.path[:0] = [str(tree), str(tree / "src")]
    os.chdir(tree)
    os.environ |= {
        "PYTHONPATH": str(tree / "src"),
        "TMPDIR": str(temporary),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    tempfile.tempdir = None
    # A workspace serves many runs, which need not compile the same modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
