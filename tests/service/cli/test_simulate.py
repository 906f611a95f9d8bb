"""`safelight simulate`: its keys, how it grows, and one sentence for what cannot be."""

import json

import pytest

from safelight.service.cli import main

KEYS = {
    "model", "gpu", "gpus", "rate_per_hour", "trace", "hours", "images", "images_per_hour", "alone_s", "p50_s", "p95_s", "p99_s", "refused",
    "expired", "resent", "lost", "gpu_hours", "most_replicas", "utilisation", "cost_per_1000_images", "control_plane", "full_at_denoisers",
    "followed_replicas", "simulated_in_s",
}  # fmt: skip


def simulate(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    assert main(["simulate", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_fleet_in_figures(capsys: pytest.CaptureFixture[str]) -> None:
    told = simulate(
        capsys,
        "--gpus",
        "4",
        "--rate",
        "4000",
        "--trace",
        "steady",
        "--hours",
        "1",
        "--least",
        "4",
        "--price-per-hour",
        "2",
    )
    assert told.keys() == KEYS
    assert told["images_per_hour"] == pytest.approx(4000, rel=0.05)
    assert told["alone_s"] - 1e-6 <= told["p50_s"] <= told["p95_s"] <= told["p99_s"] < 10.0
    assert told["gpu_hours"] == pytest.approx(4.0)
    assert told["cost_per_1000_images"] == pytest.approx(2000 * 4 / told["images"])
    assert told["utilisation"] == pytest.approx(told["images"] * (told["alone_s"]) / (4 * 3600), rel=0.1)


def test_more_than_can_be_drawn_waits(capsys: pytest.CaptureFixture[str]) -> None:
    told = simulate(capsys, "--gpus", "1", "--rate", "4000", "--trace", "steady", "--hours", "0.5")
    assert told["utilisation"] > 0.98 and told["p95_s"] > 100 and told["images_per_hour"] < 2500


def test_growing_shares_the_rate_out(capsys: pytest.CaptureFixture[str]) -> None:
    fleets = simulate(capsys, "--gpus", "100", "--rate", "80000", "--hours", "0.2", "--grow")["fleets"]
    assert [(each["gpus"], each["rate_per_hour"]) for each in fleets] == [
        (1, 800.0),
        (10, 8000.0),
        (100, 80000.0),
    ]
    assert fleets[2]["followed_replicas"] == 60 and fleets[1]["followed_replicas"] == 10
    assert fleets[2]["control_plane"]["gateways"]["used"] > 5 * fleets[1]["control_plane"]["gateways"]["used"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
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
        (("--gpus", "1", "--rate", "1", "--size", "large"), "--size must be WIDTHxHEIGHT, got 'large'"),
        (("--gpus", "1", "--rate", "1", "--size", "3x3"), "size 3x3 is not possible"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], sentence: str
) -> None:
    assert main(["simulate", *args]) == 2
    assert sentence in capsys.readouterr().err


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--gpus", "2", "--rate", "1000", "--hours", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "full first: " in out and "GPU hours" in out
