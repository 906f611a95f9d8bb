"""`safelight plan`: what it tells people and programs, what it refuses, and that a measured machine is measured."""

import json
import math
import subprocess
import sys

import pytest

from safelight.pipeline.calibration import stage_times
from safelight.service import cli

KEYS = {
    "tflop_per_image", "service_s", "latency_s", "images_per_hour_per_device", "replicas", "meets_latency", "meets_throughput",
    "cost_per_1000_images",
}  # fmt: skip


def planned(capsys, *argv: str) -> dict:
    assert cli.main(["plan", "--json", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_published_model_on_an_a100(capsys):
    told = planned(
        capsys,
        "--model",
        "pixart-sigma",
        "--gpu",
        "a100",
        "--steps",
        "20",
        "--mfu",
        "0.5",
        "--price-per-hour",
        "2",
    )
    assert set(told) >= KEYS
    assert told["tflop_per_image"] == pytest.approx(281, rel=0.01)
    assert told["tflop_per_image"] == pytest.approx(sum(told["stage_tflop"].values()))
    assert told["service_s"] == pytest.approx(1.80, rel=0.01)
    assert told["service_s"] == pytest.approx(sum(told["stage_s"].values()))
    assert told["images_per_hour_per_device"] == pytest.approx(3600 / told["service_s"])
    assert told["service_s"] < told["mean_latency_s"] < 5.0 < told["latency_s"] < 5.6
    assert (told["meets_latency_alone"], told["meets_latency"], told["meets_throughput"]) == (
        True,
        False,
        True,
    )
    assert told["replicas"] == {"encode": 1, "denoise": 1, "decode": 1}
    assert told["steps_that_meet"] == {"alone": 41, "under_load": 19}
    assert told["cost_per_1000_images"] == pytest.approx(2 * 1000 / told["images_per_hour_per_device"])
    assert told["size"] == "1024x1024"
    assert (told["nfe"], told["rows"]) == (20, 40)


def test_the_defaults_are_the_models_and_the_targets(capsys):
    told = planned(capsys, "--model", "sd3-medium")
    assert (told["steps"], told["guidance_scale"], told["solver"], told["mfu"], told["peak_tflops"]) == (
        28,
        7.0,
        "euler",
        0.4,
        312,
    )
    assert told["targets"] == {"images_per_hour": 1000.0, "latency_s": 5.0, "percentile": 95.0}
    assert told["cost_per_1000_images"] is None
    assert (
        told["meets_latency_alone"],
        told["meets_throughput"],
        told["latency_s"],
        told["mean_latency_s"],
    ) == (True, False, None, None)


@pytest.mark.parametrize(
    ("argv", "what", "by"),
    [
        (
            ("--size", "512x512"),
            "stage_tflop.decode",
            0.2402,
        ),  # attention in the middle of the decoder falls by more than 4
        (("--guidance-scale", "1"), "stage_tflop.encode", 0.5),
        (("--guidance-scale", "1"), "rows", 0.5),
        (("--solver", "heun", "--steps", "20"), "nfe", 39 / 20),
        (("--peak-tflops", "624"), "service_s", 0.5),
        (("--mfu", "0.8"), "service_s", 0.5),
        (("--gpu", "l40s"), "service_s", 312 / 362),
    ],
)
def test_what_is_asked_for_changes_what_is_told(capsys, argv, what, by):
    def told(*argv: str) -> float:
        found = planned(capsys, "--model", "pixart-sigma", *argv)
        for key in what.split("."):
            found = found[key]
        return found

    assert told(*argv) == pytest.approx(by * told(), rel=1e-3)


def test_wanted_more_it_needs_more(capsys):
    few = planned(capsys, "--model", "sd3-medium", "--steps", "20", "--mfu", "0.5")
    many = planned(
        capsys,
        "--model",
        "sd3-medium",
        "--steps",
        "20",
        "--mfu",
        "0.5",
        "--images-per-hour",
        "10000",
        "--percentile",
        "99",
    )
    assert few["replicas"]["denoise"] == 2
    assert few["replicas_latency_s"] < 5.0
    assert many["replicas"]["denoise"] >= math.ceil(10_000 / 3600 * many["stage_s"]["denoise"])
    assert many["replicas_latency_s"] < 5.0
    assert (
        planned(capsys, "--model", "sd3-medium", "--mfu", "0.5", "--latency-s", "2")["steps_that_meet"][
            "alone"
        ]
        < 30
    )


def test_a_folder_is_planned_from_its_configs(capsys, monkeypatch):
    """No weight is read; and the processor by a peak that is given."""
    monkeypatch.setattr(
        "safelight.models.checkpoints.tensors.read_stored", lambda *_: pytest.fail("weights were read")
    )
    told = planned(capsys, "--model", "emoji-128", "--gpu", "cpu", "--peak-tflops", "0.4")
    assert (told["model"], told["size"], told["steps"]) == ("emoji-128", "128x128", 20)
    assert told["service_s"] == pytest.approx(told["tflop_per_image"] / 0.4 / 0.5)


def test_this_machine_is_measured(capsys, monkeypatch):
    monkeypatch.setenv("SAFELIGHT_DENOISE_THREADS", "1")
    told = planned(capsys, "--model", "tiny", "--gpu", "cpu", "--steps", "4", "--images-per-hour", "10")
    assert (told["mfu"], told["peak_tflops"], told["mean_latency_s"]) == (None, None, None)
    assert all(seconds > 0 for seconds in told["stage_s"].values())
    assert (
        told["images_per_hour_per_device"] >= 3600 / told["service_s"] * 0.999
    )  # company never makes it slower
    assert told["latency_s"] >= told["service_s"]


def test_what_is_too_large_to_be_measured_has_the_best_products_peak(capsys, monkeypatch):
    monkeypatch.setattr(stage_times, "quick_gemm_peak", lambda *_: 2e12)
    told = planned(capsys, "--model", "pixart-sigma", "--gpu", "cpu")
    assert (told["peak_tflops"], told["mfu"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--gpu", "b200"), "--gpu must be one of a100, h100, h200, l40s, cpu, got 'b200'"),
        (
            ("--model", "nosuch"),
            "neither a folder nor one of emoji-128, tiny; published checkpoints: pixart-alpha",
        ),
        (("--model", __file__), "is a file, a checkpoint is a folder"),
        (("--size", "big"), "--size must be WIDTHxHEIGHT or auto, got 'big'"),
        (("--size", "7x7"), "size 7x7 is not served by emoji-128; allowed: 128x128"),
        (("--model", "sd3-medium", "--size", "1000x1000"), "sides are multiples of 16"),
        (("--model", "sdxl", "--size", "512x512"), "512x512 was not counted for sdxl"),
        (("--steps", "0"), "steps must be between 1 and 200, got 0"),
        (("--steps", "many"), "--steps: invalid int value: 'many'"),
        (("--solver", "plms", "--steps", "1"), "num_inference_steps must be at least 3 for plms"),
        (("--guidance-scale", "nan"), "guidance scale must be between 0 and 20, got nan"),
        (("--solver", "magic"), "solver 'magic' is unknown; allowed: "),
        (("--model", "sd3-medium", "--solver", "euler_maruyama"), "is not defined on this model's schedule"),
        (("--mfu", "40"), "--mfu must be more than 0 and at most 1, got 40"),
        (("--mfu", "nan"), "--mfu must be more than 0 and at most 1"),
        (("--percentile", "100"), "--percentile must be more than 0 and at most 99.99, got 100"),
        (("--images-per-hour", "0"), "--images-per-hour must be more than 0 and finite, got 0"),
        (("--latency-s", "inf"), "--latency-s must be more than 0 and finite, got inf"),
        (("--price-per-hour", "-1"), "--price-per-hour must be more than 0 and finite, got -1"),
        (("--peak-tflops", "0"), "--peak-tflops must be more than 0 and finite, got 0"),
    ],
)
def test_a_users_mistake_is_one_line(capsys, monkeypatch, argv, complaint):
    monkeypatch.setattr(stage_times, "measure_pace", lambda *_: pytest.fail("a machine was measured"))
    try:
        code = cli.main(["plan", *argv])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert (code, out) == (2, "")
    assert complaint in line


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (
            ("--model", "pixart-sigma", "--mfu", "0.5", "--price-per-hour", "2"),
            [
                "pixart-sigma, 1024x1024, 20 steps of dpmpp_2m at guidance 4.5",
                "NVIDIA A100 80 GB SXM, at 50 % of 312 TFLOPS",
                "one device draws 2009 images an hour: met",
                "an image alone takes 1.79 s: met",
                "of 1000 an hour that come at random, 95 % take at most 5.44 s: missed",
                "most steps within 5 s and 1000 an hour: 41 for an image alone, 19 at that load",
                "1000 images cost 0.9958 of device time",
            ],
        ),
        (("--model", "flux.1-dev"), ["1000 an hour that come at random are more than it can draw: missed"]),
    ],
)
def test_people_read_verdicts(capsys, argv, lines):
    assert cli.main(["plan", *argv]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line not in told] == []
    assert any("denoise" in line for line in told)


def test_a_mistake_is_found_without_torch():
    code = (
        "import sys; from safelight.service import cli; cli.main(['plan', '--gpu', 'x']);"
        "sys.exit(' '.join({'torch', 'ray'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
