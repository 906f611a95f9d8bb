"""The steps of `make gpu`: time limits, results that are kept, and commands that exist."""

import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safelight.service.cli import make_parser
from tests.gpu.__main__ import NO_CUDA, SAFELIGHT, STEPS
from tests.gpu.steps import Step, run_steps

WORDS = {"python": sys.executable, "out": "unused"}


def python(code: str) -> tuple[str, ...]:
    return "{python}", "-c", code


def has_ended(pid: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    return bool(select.select([process], [], [], 5.0)[0])  # readable once it has ended


def test_every_step_runs_whatever_the_others_do(tmp_path: Path) -> None:
    """One passes, one fails, one takes too long and has a child that would go on."""
    child = tmp_path / "child"
    steps = [
        Step("first", "passes", python("print('good')"), 60),
        Step("second", "fails", python("import sys; print('bad', file=sys.stderr); sys.exit(3)"), 60),
        Step("third", "hangs", ("sh", "-c", f"sleep 600 & echo $! > {child}; wait"), 0.5),
        Step("last", "passes too", python("print('good again')"), 60),
    ]
    lines: list[str] = []
    results = run_steps(steps, tmp_path / "gpu", WORDS, lines.append)
    verdicts = ["passed", "failed with status 3", "out of time", "passed"]
    assert [result.verdict for result in results] == verdicts
    assert (results[0].stdout, results[1].stderr) == ("good\n", "bad\n")
    report = (tmp_path / "gpu" / "report.md").read_text()
    assert "4 of 4 steps" in report and "| third | hangs | out of time |" in report and "bad" in report
    assert [row["status"] for row in json.loads((tmp_path / "gpu" / "report.json").read_text())] == [
        0,
        3,
        None,
        0,
    ]
    assert has_ended(int(child.read_text()))
    assert lines[0] == "first: passes, at most 60 s" and len(lines) == 8


def test_results_are_kept_when_a_later_step_ends_the_run(tmp_path: Path) -> None:
    steps = [
        Step("first", "passes", python("print('good')"), 60),
        Step("second", "is interrupted", ("no such program",), 60),
    ]
    with pytest.raises(FileNotFoundError):
        run_steps(steps, tmp_path, WORDS, lambda line: None)
    assert "1 of 2 steps" in (tmp_path / "report.md").read_text()


def test_all_steps_fit_into_ten_minutes() -> None:
    assert sum(step.seconds for step in STEPS) <= 600
    assert next(step.name for step in STEPS if "bench" in step.command) == "capstone"


def test_the_page_lists_the_steps_in_order() -> None:
    page = (Path(__file__).resolve().parents[2] / "deploy" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", page, re.MULTILINE)
    assert rows == [(step.name, str(step.seconds)) for step in STEPS]


@pytest.mark.parametrize("step", [step for step in STEPS if step.command[:3] == SAFELIGHT])
def test_the_flags_of_a_step_exist(step: Step) -> None:
    words = list(step.command[len(SAFELIGHT) :])
    assert make_parser(words).parse_args(words).command == words[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_gpu_nothing_is_run_and_that_is_said() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.gpu"], capture_output=True, text=True)
    assert done.returncode == NO_CUDA
    assert "torch sees none here: nothing was run" in done.stderr and not done.stdout
