"""`safelight doctor`: everything is tried for real, what is wrong is a finding, and the exit status says so."""

import json
import socket

import pytest
import torch

from safelight.models.packed import attention_choice
from safelight.models.packed.attention import PerLengthAttention
from safelight.pipeline.calibration import diagnose as examination
from safelight.service import cli
from safelight.service.cli import doctor
from tests.broken import tiny_without

SOUND = {"weights", "attention", "network", "neighbours", "image", "ray", "port"}


@pytest.fixture
def without_ray(monkeypatch):
    """Ray takes ten seconds, and is tried in one test."""
    monkeypatch.setattr(doctor, "_ray", lambda: examination.Finding("ray", True, "not asked"))


def examined(capsys, *argv: str) -> tuple[int, dict, dict]:
    code = cli.main(["doctor", "--port", "0", "--json", *argv])
    report = json.loads(capsys.readouterr().out)
    return code, report, {finding["name"]: finding for finding in report["findings"]}


def test_a_sound_machine_and_model(capsys):
    code, report, found = examined(capsys, "--model", "tiny")
    assert (code, report["sound"]) == (0, True)
    assert {name for name, finding in found.items() if finding["is_sound"]} == SOUND
    assert set(found) == SOUND | {"device", "compile"}
    assert report["prognosis"]["seconds"] > 0
    assert report["prognosis"]["images_per_hour"] > 0
    assert 2 <= len(report["prognosis"]["curve"]["work"]) <= 5  # 1, 2, 4, 8, 16 rows, as far as there is time


def test_a_broken_checkpoint_is_a_finding(capsys, without_ray, tmp_path):
    code, report, found = examined(capsys, "--model", str(tiny_without("proj_out.weight", tmp_path)))
    assert (code, report["sound"], report["prognosis"]) == (1, False, None)
    assert "proj_out.weight is missing" in found["weights"]["says"]
    assert found["network"]["is_sound"] is False


def test_a_kernel_that_is_wrong_is_a_finding(capsys, without_ray, monkeypatch):
    wrong = PerLengthAttention("wrong", lambda q, k, v, bias: torch.zeros_like(q))
    monkeypatch.setattr(examination, "choose", lambda *_: (wrong, "of a test"))
    code, _, found = examined(capsys, "--model", "tiny")
    assert (code, found["attention"]["is_sound"]) == (1, False)
    assert found["attention"]["says"].startswith("wrong, because of a test; off the plain one by: ")
    assert "wrong 1.0e+00" in found["attention"]["says"]


def test_a_kernel_that_gives_nan_is_a_finding(capsys, without_ray, monkeypatch):
    broken = PerLengthAttention("broken", lambda q, k, v, bias: torch.full_like(q, float("nan")))
    monkeypatch.setitem(examination.BACKENDS, "broken", broken)
    code, _, found = examined(capsys, "--model", "tiny")
    assert (code, found["attention"]["is_sound"]) == (1, False)
    assert "broken nan" in found["attention"]["says"]


def test_a_network_that_computes_something_else_is_a_finding(capsys, without_ray, monkeypatch):
    wrong = PerLengthAttention("wrong", lambda q, k, v, bias: -q)
    monkeypatch.setattr("safelight.models.denoisers.choose", lambda *_: (wrong, "of a test"))
    code, _, found = examined(capsys, "--model", "tiny")
    assert (code, found["network"]["is_sound"]) == (1, False)


def test_a_taken_port_is_a_finding_in_words(capsys, without_ray):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["doctor", "--model", "tiny", "--port", str(taken.getsockname()[1])]) == 1
    out = capsys.readouterr().out
    assert "Address already in use" in out
    assert "tiny cannot be served here as it is" in out
    assert "an hour in full batches" in out
    assert (
        attention_choice.select_attention(torch.device("cpu"), torch.float32, 4, 16)[1] in out
        or "products, because" in out
    )
