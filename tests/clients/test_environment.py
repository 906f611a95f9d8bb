"""The environment of clients is made again when a lock file changes."""

import subprocess
from pathlib import Path

import pytest

from tests.clients import environment


def test_the_stamp_is_of_the_lock_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = tmp_path / "stamp"
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "STAMP", stamp)
    for name in environment.LOCKS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert not environment.is_made()
    done = subprocess.run(["sha256sum", *environment.LOCKS], cwd=tmp_path, capture_output=True, text=True)
    stamp.write_text(done.stdout, encoding="utf-8")
    assert environment.is_made()
    (tmp_path / environment.LOCKS[1]).write_text("other", encoding="utf-8")
    assert not environment.is_made()


def test_make_writes_that_stamp() -> None:
    makefile = (environment.ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\nCLIENTS := {environment.FOLDER.relative_to(environment.ROOT)}\n" in makefile
    assert f"\nCLIENT_LOCKS := {' '.join(environment.LOCKS)}\n" in makefile
    assert "\n\tsha256sum $(CLIENT_LOCKS) > $@\n" in makefile
