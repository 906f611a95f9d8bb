"""The form in which every benchmark writes its figures, and `docs/data` keeps them."""

import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from safelight.pipeline.benchmark.machine import Machine

PACKAGE = Path(__file__).resolve().parent


def benchmark_record(machine: Machine, command: str, figures: Mapping[str, object]) -> dict[str, object]:
    """The figures of one run with the machine, commit, date and command that they are from, for JSON."""
    return {
        "machine": machine.as_dict(),
        "commit": current_commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "figures": dict(figures),
    }


def current_commit(file: Path = PACKAGE / "record.py") -> str | None:
    """The commit of the clone that holds `file`, ending in `+` if files were changed since.

    None where `file` is not in a clone, as in an installed package, or where there is no git.
    """
    if not _git(file.parent, "ls-files", file.name):  # not tracked: the clone of something else
        return None
    commit = _git(file.parent, "rev-parse", "--short", "HEAD")
    return (
        commit + "+" if _git(file.parent, "status", "--porcelain", "--untracked-files=no", ":/") else commit
    )


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
