"""`safelight simulate`: its reports for programs and for people, growing fleets, and refusals."""

import json
from typing import Any

import pytest

from safelight.pipeline.capacity.comparison import deadlines, greedy, order
from safelight.pipeline.capacity.comparison.policies import POLICIES
from safelight.service.cli import main
from safelight.service.cli.simulate_report import as_text

KEYS = {
    "model", "gpu", "gpus", "rate_per_hour", "trace", "hours", "images", "images_per_hour", "alone_s",
    "p50_s", "p95_s", "p99_s", "refused", "expired", "resent", "lost", "gpu_hours", "most_replicas",
    "utilisation", "cost_per_1000_images", "control_plane", "full_at_denoisers", "followed_replicas",
    "simulated_in_s",
}  # fmt: skip


def simulate(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """The output of `safelight simulate --json`."""
    assert main(["simulate", *args, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_the_report_of_a_fleet(capsys: pytest.CaptureFixture[str]) -> None:
    traffic = ("--rate", "4000", "--trace", "steady", "--hours", "1")
    report = simulate(capsys, *traffic, "--gpus", "4", "--least", "4", "--price-per-hour", "2")
    assert report.keys() == KEYS
    assert report["images_per_hour"] == pytest.approx(4000, rel=0.05)
    assert report["alone_s"] - 1e-6 <= report["p50_s"] <= report["p95_s"] <= report["p99_s"] < 10.0
    assert report["gpu_hours"] == pytest.approx(4.0)
    assert report["cost_per_1000_images"] == pytest.approx(2000 * 4 / report["images"])
    assert report["utilisation"] == pytest.approx(report["images"] * report["alone_s"] / (4 * 3600), rel=0.1)


def test_an_overloaded_fleet_falls_behind(capsys: pytest.CaptureFixture[str]) -> None:
    report = simulate(capsys, "--gpus", "1", "--rate", "4000", "--trace", "steady", "--hours", "0.5")
    assert report["utilisation"] > 0.98 and report["p95_s"] > 100 and report["images_per_hour"] < 2500


def test_growing_fleets_share_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    fleets = simulate(capsys, "--gpus", "100", "--rate", "80000", "--hours", "0.2", "--grow")["fleets"]
    assert [(fleet["gpus"], fleet["rate_per_hour"]) for fleet in fleets] == [
        (1, 800.0),
        (10, 8000.0),
        (100, 80000.0),
    ]
    assert fleets[2]["followed_replicas"] == 60 and fleets[1]["followed_replicas"] == 10
    assert fleets[2]["control_plane"]["gateways"]["used"] > 5 * fleets[1]["control_plane"]["gateways"]["used"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--gpus", "1"), "--rate is needed, unless --compare is given"),
        (("--rate", "1"), "--gpus is needed, unless --compare is given"),
        (
            ("--compare", "deadlines", "--devices", "0"),
            "--devices must be between 1 and 10000, got 0",
        ),
        (
            ("--compare", "deadlines", "--traffic", "rush"),
            "--traffic must be one of below-capacity, bursts, overload, like-gentd26, like-katz, got 'rush'",
        ),
        (("--gpus", "0", "--rate", "1"), "--gpus must be between 1 and 100000, got 0"),
        (("--gpus", "1", "--rate", "0"), "--rate must be more than 0 and finite, got 0.0"),
        (("--gpus", "1", "--rate", "1", "--gpu", "abacus"), "--gpu must be one of"),
        (
            ("--gpus", "1", "--rate", "1", "--trace", "odd"),
            "--trace must be one of steady, diurnal, spike, got 'odd'",
        ),
        (
            ("--gpus", "1", "--rate", "1", "--model", "no"),
            "--model must be a published checkpoint by its name",
        ),
        (("--gpus", "1", "--rate", "1", "--mfu", "2"), "--mfu must be more than 0 and at most 1"),
        (("--gpus", "1", "--rate", "1", "--max-rows", "1"), "--max-rows must be between 2"),
        (("--gpus", "1", "--rate", "1", "--least", "2"), "--least must be between 0 and --gpus, got 2"),
        (("--gpus", "1", "--rate", "1", "--price-per-hour", "-1"), "--price-per-hour must be at least 0"),
        (("--gpus", "1", "--rate", "1", "--size", "large"), "--size must be WIDTHxHEIGHT, got 'large'"),
        (("--gpus", "1", "--rate", "1", "--size", "3x3"), "size 3x3 is not possible"),
    ],
)
def test_a_users_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], sentence: str
) -> None:
    assert main(["simulate", *args]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("what", ["shares", "order", "selections", "deadlines"])
def test_policies_are_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Each comparison as a table, and as a record for docs/data that names its command."""
    monkeypatch.setattr(deadlines, "SECONDS", 3.0)
    monkeypatch.setattr(greedy, "SECONDS", 3.0)
    monkeypatch.setattr(greedy, "SHARE_SECONDS", 1.0)
    monkeypatch.setattr(order, "NUM_REQUESTS", 20)
    assert main(["simulate", "--compare", what, "--devices", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"].startswith(f"safelight simulate --compare {what}")
    tables = record["figures"]["tables"]
    assert all(len(row) == len(table["columns"]) for table in tables for row in table["rows"])
    assert main(["simulate", "--compare", what, "--devices", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for table in tables:
        assert any(line.split() == " ".join(table["columns"]).split() for line in lines)
        assert any(line.split() == " ".join(table["rows"][-1]).split() for line in lines)


def test_a_comparison_of_one_traffic(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(deadlines, "SECONDS", 2.0)
    flags = ["--compare", "deadlines", "--devices", "2", "--traffic", "overload", "bursts"]
    assert main(["simulate", *flags, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["command"] == f"safelight simulate {' '.join(flags)}"
    [table] = record["figures"]["tables"]
    expected = [["2", traffic, policy] for traffic in ("overload", "bursts") for policy in POLICIES]
    assert [row[:3] for row in table["rows"]] == expected


def test_the_text_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--gpus", "2", "--rate", "1000", "--hours", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pixart-sigma on NVIDIA A100 80 GB SXM, diurnal traffic over 0.1 hours"
    assert any(line.startswith("GPUs") and "utilisation" in line for line in lines)
    assert any(line.startswith("controller") for line in lines)


REPORT = {
    "model": "pixart-sigma", "gpu": "NVIDIA A100 80 GB SXM", "gpus": 100, "trace": "diurnal", "hours": 24.0,
    "images_per_hour": 80042.4, "alone_s": 1.792, "p50_s": 2.82, "p95_s": 5.33, "p99_s": None,
    "gpu_hours": 1096.2, "most_replicas": 100.0, "utilisation": 0.812, "resent": 5.0, "lost": 0.0,
    "cost_per_1000_images": 1.141,
    "control_plane": {
        "gateways": {"used": 0.9, "share": None},
        "ledger": {"used": 0.25, "share": 0.314},
        "controller": {"used": 0.29, "share": 0.359},
    },
    "full_at_denoisers": {"ledger": 319.1, "controller": 278.3, "object_store": 9999999.9},
}  # fmt: skip
TEXT = """\
pixart-sigma on NVIDIA A100 80 GB SXM, diurnal traffic over 24 hours
latency of an image alone: 1.79 s

GPUs  images/h  p50, s  p95, s  p99, s  GPU hours  max GPUs  utilisation  retried  lost  cost per 1000
100      80042    2.82    5.33       -       1096       100          81%        5     0           1.14

control plane at the highest rate, 100% is saturated:

GPUs  gateway processes  ledger  controller
100                 0.9     31%         36%

component     saturates at, denoisers
controller                        278
ledger                            319
object_store                    never"""


def test_the_tables_are_aligned() -> None:
    assert as_text([REPORT]) == TEXT
