"""The environment of clients that `make clients` makes: packages of Python and of Node.js with other pins."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/clients"
PYTHON = FOLDER / "venv/bin/python"
LOCKS = ("requirements/clients.txt", "tests/clients/node/package-lock.json")
STAMP = FOLDER / ".installed"


def is_made() -> bool:
    """Whether the environment is there, with the versions that are locked today."""
    lines = [f"{hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}  {name}" for name in LOCKS]
    return STAMP.exists() and STAMP.read_text(encoding="utf-8").splitlines() == lines
