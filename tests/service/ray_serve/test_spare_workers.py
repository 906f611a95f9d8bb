"""Spare workers, without Ray; loadtests.chaos and tests/chaos use real ones."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.service.local import ENVIRONMENT
from safelight.service.ray_serve import preload, spare_workers
from safelight.service.ray_serve.spare_workers import SpareWorkers, idle_workers


def test_one_worker_becomes_the_spare_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports: list[str] = []
    monkeypatch.setattr("importlib.import_module", imports.append)
    preload.ask_for_spare(tmp_path, [])
    for _ in range(2):  # the second finds no request
        preload._import_libraries(tmp_path)
    assert tuple(imports) == preload.MODULES
    assert [path.name for path in (tmp_path / preload.MARKS).iterdir()] == [str(os.getpid())]
    assert [path.name for path in tmp_path.iterdir()] == [preload.MARKS]


def test_ray_imports_the_module_that_makes_workers_spare() -> None:
    assert ENVIRONMENT["RAY_preload_python_modules"] == preload.__name__


@pytest.fixture
def sleepers() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    titles = ("ray::IDLE", "ray::ServeReplica:safelight:Gateway")
    processes = {title: subprocess.Popen([title, "600"], executable="/bin/sleep") for title in titles}
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()


def mark(folder: Path, process: subprocess.Popen[bytes]) -> None:
    (folder / preload.MARKS).mkdir(exist_ok=True)
    (folder / preload.MARKS / str(process.pid)).touch()


def test_a_spare_worker_is_one_until_it_has_an_actor_or_ends(
    tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]
) -> None:
    assert idle_workers(tmp_path) == []
    idle, used = sleepers.values()
    for process in (idle, used):
        mark(tmp_path, process)
    assert idle_workers(tmp_path) == [idle.pid]
    assert [path.name for path in (tmp_path / preload.MARKS).iterdir()] == [str(idle.pid)]
    idle.kill()
    idle.wait()
    assert idle_workers(tmp_path) == []


def test_other_idle_workers_are_ended(tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]) -> None:
    idle, used = sleepers.values()
    mark(tmp_path, idle)
    spare_workers.end_other_idle_workers(tmp_path)
    assert idle.poll() is used.poll() is None
    (tmp_path / preload.MARKS / str(idle.pid)).unlink()
    spare_workers.end_other_idle_workers(tmp_path)
    idle.wait(60.0)
    assert used.poll() is None


def test_a_worker_is_started_when_one_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when the one that was asked for is used, but not while it starts."""
    numbers = [0, 0, 0, 1, 1, 0, 0, 1]
    asked: list[int] = []
    workers = SpareWorkers(1, [], tmp_path)

    def count(folder: Path) -> list[int]:
        if not numbers:
            workers._should_stop.set()
            return [1]
        return [0] * numbers.pop(0)

    monkeypatch.setattr(spare_workers, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(spare_workers, "end_other_idle_workers", lambda folder: None)
    monkeypatch.setattr(spare_workers, "idle_workers", count)
    monkeypatch.setattr(spare_workers, "start_worker", lambda: asked.append(len(numbers)))
    workers.run()
    assert asked == [7, 2]
