"""`safelight bench --random-weights`, on a tiny shape."""

import json
from collections.abc import Sequence

import pytest
import torch

from safelight.pipeline.benchmark import random_weights
from safelight.service import cli

COMMAND = ("bench", "--random-weights", "tiny", "--steps", "2", "--in-flight", "1,2", "--no-compile")


@pytest.fixture(autouse=True)
def peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the best matrix product takes longer than all the rest."""

    def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
        return 1e11

    monkeypatch.setattr(random_weights, "gemm_peak", gemm_peak)


def outputs(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main([*COMMAND, *argv])
    return status, *capsys.readouterr()


def column(table: str, index: int) -> Sequence[str]:
    return [line.split()[index] for line in table.splitlines()[1:]]


def test_runs_stand_beside_the_prediction_and_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = outputs(capsys)
    assert (status, err) == (0, "")
    heading, runs, by, verdicts, _ = out.split("\n\n")
    assert heading.splitlines()[0].startswith("tiny-pixart-sigma with random weights on cpu")
    assert "64x64, 2 steps of dpmpp_2m at guidance 4.5" in heading
    assert column(runs, 0) == ["eager", "eager", "predicted"]
    assert column(runs, 1) == ["1", "2", "1"]
    assert by == "predicted by `safelight plan`: this machine by its best matrix product, 50 % of 0.1 TFLOPS"
    assert [line.rsplit(None, 1)[1] for line in verdicts.splitlines()[1:]] == ["met", "met"]
    assert "at most 5 s" in verdicts and "at least 1,000" in verdicts


def test_the_record_holds_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = outputs(capsys, "--json", "--check")
    record = json.loads(out)
    assert status == 0 and err.count("met") == 2
    assert record["command"] == (
        "safelight bench --random-weights tiny --steps 2 --in-flight 1,2 --no-compile"
    )
    figures = record["figures"]
    assert figures["spec"]["size"] == [64, 64]
    assert [run["in_flight"] for run in figures["runs"]] == [1, 2]
    assert all(0.0 < run["mfu"] < 10.0 for run in figures["runs"])


def test_a_missed_target_ends_with_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_weights, "HOUR", 0.001)  # images an hour, as if an hour were this short
    assert outputs(capsys, "--check")[0] == 1
    assert outputs(capsys)[0] == 0
