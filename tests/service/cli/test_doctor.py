"""`safelight doctor`: checks run for real, a failure is a check's result, and sets the exit status."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.models.packed import attention_choice
from safelight.models.packed.attention import BACKENDS, PerLengthAttention
from safelight.pipeline.calibration import checks
from safelight.service import cli
from safelight.service.cli import doctor
from tests.broken import tiny_without

SOUND = {"weights", "attention", "network", "neighbours", "image", "ray", "port"}


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the check of Ray, which takes ten seconds and is run in one test."""
    monkeypatch.setattr(doctor, "_check_ray", lambda: checks.CheckResult("ray", True, "skipped"))


def run_doctor(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """The exit status, the JSON report, and its findings by name."""
    code = cli.main(["doctor", "--port", "0", "--json", *argv])
    report = json.loads(capsys.readouterr().out)
    return code, report, {finding["name"]: finding for finding in report["findings"]}


def test_a_sound_machine_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, report, findings = run_doctor(capsys, "--model", "tiny")
    assert (code, report["sound"]) == (0, True)
    assert {name for name, finding in findings.items() if finding["is_sound"]} == SOUND
    assert set(findings) == SOUND | {"device", "compile"}
    assert all(finding.keys() == {"name", "is_sound", "says"} for finding in findings.values())
    assert report["prognosis"]["curve"].keys() == {"work", "seconds", "factor", "ticks_seen"}
    assert report["prognosis"]["seconds"] > 0
    assert report["prognosis"]["images_per_hour"] > 0
    assert 2 <= len(report["prognosis"]["curve"]["work"]) <= 5  # 1, 2, 4, 8, 16 rows if time allows


def test_a_broken_checkpoint_fails(
    capsys: pytest.CaptureFixture[str], without_ray: None, tmp_path: Path
) -> None:
    code, report, findings = run_doctor(capsys, "--model", str(tiny_without("proj_out.weight", tmp_path)))
    assert (code, report["sound"], report["prognosis"]) == (1, False, None)
    assert "proj_out.weight is missing" in findings["weights"]["says"]
    assert findings["network"]["is_sound"] is False


def test_a_wrong_kernel_fails(
    capsys: pytest.CaptureFixture[str], without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = PerLengthAttention("wrong", lambda q, k, v, bias: torch.zeros_like(q))
    monkeypatch.setattr(checks, "select_attention", lambda *_: (wrong, "of a test"))
    code, _, findings = run_doctor(capsys, "--model", "tiny")
    assert (code, findings["attention"]["is_sound"]) == (1, False)
    assert findings["attention"]["says"].startswith("wrong, because of a test; largest error")
    assert "wrong 1.0e+00" in findings["attention"]["says"]


def test_a_kernel_that_gives_nan_fails(
    capsys: pytest.CaptureFixture[str], without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = PerLengthAttention("broken", lambda q, k, v, bias: torch.full_like(q, float("nan")))
    monkeypatch.setitem(BACKENDS, "broken", broken)
    code, _, findings = run_doctor(capsys, "--model", "tiny")
    assert (code, findings["attention"]["is_sound"]) == (1, False)
    assert "broken nan" in findings["attention"]["says"]


def test_a_network_that_computes_something_else_fails(
    capsys: pytest.CaptureFixture[str], without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = PerLengthAttention("wrong", lambda q, k, v, bias: -q)
    monkeypatch.setattr("safelight.models.denoisers.select_attention", lambda *_: (wrong, "of a test"))
    code, _, findings = run_doctor(capsys, "--model", "tiny")
    assert (code, findings["network"]["is_sound"]) == (1, False)


def test_a_taken_port_fails_and_is_named_in_the_text(
    capsys: pytest.CaptureFixture[str], without_ray: None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["doctor", "--model", "tiny", "--port", str(taken.getsockname()[1])]) == 1
    out = capsys.readouterr().out
    assert "Address already in use" in out
    assert "tiny cannot be served here as it is" in out
    assert "images/h" in out
    assert (
        attention_choice.select_attention(torch.device("cpu"), torch.float32, 4, 16)[1] in out
        or "products, because" in out
    )
