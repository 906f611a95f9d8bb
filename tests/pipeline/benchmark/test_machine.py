"""A benchmark's record says which machine and which commit its figures are from."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safelight.pipeline.benchmark.machine import Machine, identify_machine, instruction_sets
from safelight.pipeline.benchmark.record import benchmark_record, current_commit
from safelight.pipeline.calibration import peak

CPUINFO = """processor	: 0
model name	: A Processor 9000 @ 2.10GHz
flags		: fpu sse2 avx2 avx512f avx512_bf16 {more}

processor	: 1
model name	: another
flags		: fpu
"""
MACHINE = Machine("a processor", 2, ("AVX2", "AVX-512"), None, {"float32": 1.0})


def test_a_processor_is_known_by_its_name_and_flags() -> None:
    machine = identify_machine(peak_flops=2.5e12, cpuinfo=CPUINFO.format(more="amx_bf16 amx_tile"))
    assert machine.processor == "A Processor 9000 @ 2.10GHz"
    assert machine.instruction_sets == ("AVX2", "AVX-512", "AVX-512 bf16", "AMX")
    assert list(machine.gemm_gflops.values()) == [2500.0]
    assert machine.cores >= 1


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("sse2", "other"),
        ("avx avx2", "AVX2"),
        ("avx512f avx2", "AVX-512"),
        ("avx2 avx512f avx512_bf16", "AVX-512 bf16"),
        ("avx2 avx512f avx512_bf16 amx_bf16", "AMX"),
    ],
)
def test_the_kind_is_the_widest_instruction_set(flags: str, kind: str) -> None:
    assert replace(MACHINE, instruction_sets=instruction_sets(flags)).kind == kind


def test_a_gpu_is_a_kind_of_its_own() -> None:
    assert replace(MACHINE, accelerator="a GPU").kind == "a GPU"


def test_a_machine_without_proc_still_has_a_name() -> None:
    machine = identify_machine(peak_flops=1e9, cpuinfo="")
    assert machine.processor
    assert machine.instruction_sets == ()


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_commit_is_that_of_the_clone_that_tracks_the_file(tmp_path: Path) -> None:
    file, other = tmp_path / "module.py", tmp_path / "installed.py"
    file.write_text("x = 1\n")
    assert current_commit(file) is None  # no clone
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    other.write_text("")
    commit = git(tmp_path, "rev-parse", "--short", "HEAD")
    assert current_commit(file) == commit
    assert current_commit(other) is None  # an installed package inside a clone
    file.write_text("x = 2\n")
    assert current_commit(file) == commit + "+"


def test_a_record_has_everything_that_its_figures_need() -> None:
    record = benchmark_record(MACHINE, "a command", {"mfu": 0.5})
    assert record["machine"] == MACHINE.as_dict()
    assert record["command"] == "a command"
    assert record["figures"] == {"mfu": 0.5}
    assert isinstance(record["date"], str)
    assert len(record["date"]) == len("2026-01-01")


def test_a_gpus_peak_is_that_of_products_that_fill_it() -> None:
    cpu, cuda = (torch.device(name) for name in ("cpu", "cuda"))
    for shapes in (peak.SHAPES, peak.QUICK):
        assert peak.shapes_for(cpu, shapes) == shapes
        assert set(peak.shapes_for(cuda, shapes)) == {*shapes, *peak.GPU_SHAPES}
    smallest = min(2 * rows * inputs * outputs for rows, inputs, outputs in peak.GPU_SHAPES)
    assert smallest > 0.5e12  # half a millisecond at the rate of an H100
