"""The cores that a process may use, by its affinity and by its container's quota."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from safelight.service.runtime.cores import cpu_quota, num_cores


def write_v2(folder: Path, text: str) -> Path:
    (folder / "cpu.max").write_text(f"{text}\n")
    return folder


def write_v1(folder: Path, quota: int, period: int = 100_000) -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    return folder


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may run on cores 4 to 11."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4, 12)))


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),  # --cpus 4
        ("200000 50000", 4),  # another period
        ("800000 100000", 8),
        ("6400000 100000", 8),  # more than the affinity
        ("150000 100000", 2),  # a fraction is rounded up
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("nonsense", 8),
        ("many 100000", 8),
        ("", 8),
    ],
)
def test_the_quota_of_version_2(tmp_path: Path, cpu_max: str, expected: int) -> None:
    assert num_cores(write_v2(tmp_path, cpu_max)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(-1, 8), (300_000, 3), (900_000, 8), (250_000, 3), (10_000, 1)]
)
def test_the_quota_of_version_1(tmp_path: Path, quota: int, expected: int) -> None:
    assert num_cores(write_v1(tmp_path, quota)) == expected


def test_a_quota_of_version_1_has_its_own_period(tmp_path: Path) -> None:
    assert cpu_quota(write_v1(tmp_path, 30_000, period=20_000)) == 1.5


def test_version_2_precedes_version_1(tmp_path: Path) -> None:
    assert num_cores(write_v1(write_v2(tmp_path, "200000 100000"), 600_000)) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert num_cores(tmp_path) == 8


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert num_cores(tmp_path) == 8


def test_on_a_system_without_affinity_all_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert num_cores(tmp_path) == 6


def test_the_affinity_is_that_of_the_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from safelight.service.runtime.cores import num_cores;"
        "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(num_cores(Path(sys.argv[1])))"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=True)
    assert process.stdout == b"1\n"


def test_the_files_are_read_where_containers_have_them() -> None:
    assert num_cores.__defaults__ == cpu_quota.__defaults__ == (Path("/sys/fs/cgroup"),)
