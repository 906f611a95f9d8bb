"""`safelight plan`: its report for programs and for people, refusals, and the measured machine."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from safelight.pipeline.calibration import stage_times
from safelight.pipeline.capacity import devices
from safelight.pipeline.capacity.image_cost import ImageSpec, image_cost
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import StageCost
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service import cli

KEYS = {
    "tflop_per_image",
    "service_s",
    "latency_s",
    "images_per_hour_per_device",
    "replicas",
    "meets_latency",
    "meets_throughput",
    "cost_per_1000_images",
}
SD3_AT_HALF_PEAK = ("--model", "sd3-medium", "--steps", "20", "--mfu", "0.5")


def run_plan(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The output of `safelight plan --json`."""
    assert cli.main(["plan", "--json", *argv]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_published_model_on_an_a100(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_plan(
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
    assert set(report) >= KEYS
    assert report["tflop_per_image"] == pytest.approx(281, rel=0.01)
    assert report["tflop_per_image"] == pytest.approx(sum(report["stage_tflop"].values()))
    assert report["service_s"] == pytest.approx(1.80, rel=0.01)
    assert report["service_s"] == pytest.approx(sum(report["stage_s"].values()))
    assert report["images_per_hour_per_device"] == pytest.approx(3600 / report["service_s"])
    assert report["service_s"] < report["mean_latency_s"] < 5.0 < report["latency_s"] < 5.6
    assert report["meets_latency_alone"] and report["meets_throughput"]
    assert report["meets_latency"] is False
    assert report["replicas"] == {"encode": 1, "denoise": 1, "decode": 1}
    assert report["steps_that_meet"] == {"alone": 41, "under_load": 19}
    assert report["cost_per_1000_images"] == pytest.approx(2 * 1000 / report["images_per_hour_per_device"])
    assert report["size"] == "1024x1024"
    assert (report["nfe"], report["rows"]) == (20, 40)


def test_defaults_come_from_the_model_and_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_plan(capsys, "--model", "sd3-medium")
    assert (report["steps"], report["guidance_scale"], report["solver"]) == (28, 7.0, "euler")
    assert (report["mfu"], report["peak_tflops"]) == (0.4, 312)
    assert report["targets"] == {"images_per_hour": 1000.0, "latency_s": 5.0, "percentile": 95.0}
    assert report["cost_per_1000_images"] is None
    assert (report["meets_latency_alone"], report["meets_throughput"]) == (True, False)
    assert (report["latency_s"], report["mean_latency_s"]) == (None, None)


@pytest.mark.parametrize(
    ("argv", "key", "factor"),
    [
        # attention in the middle of the decoder falls by more than 4
        (("--size", "512x512"), "stage_tflop.decode", 0.2402),
        (("--guidance-scale", "1"), "stage_tflop.encode", 0.5),
        (("--guidance-scale", "1"), "rows", 0.5),
        (("--solver", "heun", "--steps", "20"), "nfe", 39 / 20),
        (("--peak-tflops", "624"), "service_s", 0.5),
        (("--mfu", "0.8"), "service_s", 0.5),
        (("--gpu", "l40s"), "service_s", 312 / 362),
    ],
)
def test_a_flag_changes_the_report(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], key: str, factor: float
) -> None:
    def value(*argv: str) -> float:
        report: Any = run_plan(capsys, "--model", "pixart-sigma", *argv)
        for part in key.split("."):
            report = report[part]
        return float(report)

    assert value(*argv) == pytest.approx(factor * value(), rel=1e-3)


def test_higher_targets_need_more_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    few = run_plan(capsys, *SD3_AT_HALF_PEAK)
    many = run_plan(capsys, *SD3_AT_HALF_PEAK, "--images-per-hour", "10000", "--percentile", "99")
    assert few["replicas"]["denoise"] == 2
    assert few["replicas_latency_s"] < 5.0
    assert many["replicas"]["denoise"] >= math.ceil(10_000 / 3600 * many["stage_s"]["denoise"])
    assert many["replicas_latency_s"] < 5.0
    faster = run_plan(capsys, "--model", "sd3-medium", "--mfu", "0.5", "--latency-s", "2")
    assert faster["steps_that_meet"]["alone"] < 30


def test_a_folder_is_planned_from_its_configs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weights are read; this machine's speed is given."""
    monkeypatch.setattr(
        "safelight.models.checkpoints.tensors.read_stored", lambda *_: pytest.fail("weights were read")
    )
    report = run_plan(capsys, "--model", "emoji-128", "--gpu", "cpu", "--peak-tflops", "0.4")
    assert (report["model"], report["size"], report["steps"]) == ("emoji-128", "128x128", 20)
    assert report["service_s"] == pytest.approx(report["tflop_per_image"] / 0.4 / 0.5)


def test_this_machine_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAFELIGHT_DENOISE_THREADS", "1")
    monkeypatch.setattr(devices, "TRACE_IMAGES", 10)
    report = run_plan(capsys, "--model", "tiny", "--gpu", "cpu", "--steps", "4", "--images-per-hour", "10")
    assert (report["mfu"], report["peak_tflops"], report["mean_latency_s"]) == (None, None, None)
    assert all(seconds > 0 for seconds in report["stage_s"].values())
    # batch-mates never make an image slower
    assert report["images_per_hour_per_device"] >= 3600 / report["service_s"] * 0.999
    assert report["latency_s"] >= report["service_s"]


class FakeNetwork:
    """A text encoder and an image decoder whose runs take these seconds, one after the other."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter(seconds)

    def encode(self, texts: list[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(cost=StageCost(next(self._seconds), 1)) for _ in texts]

    def decode(self, latents: list[Tensor]) -> list[tuple[None, StageCost]]:
        assert {tuple(latent.shape) for latent in latents} == {(4, 8, 8)}
        return [(None, StageCost(next(self._seconds), 1)) for _ in latents]


def test_a_measured_machine_takes_the_medians_and_the_curve(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run of each stage, which is slow, does not count."""
    curve = CostCurve((1e6, 1e9), (0.01, 0.04))
    monkeypatch.setattr(devices, "TRACE_IMAGES", 10)
    monkeypatch.setattr(stage_times, "build_text_encoder", lambda *_: FakeNetwork(9.0, 0.3, 0.1, 0.2))
    monkeypatch.setattr(stage_times, "build_decoder", lambda *_: FakeNetwork(9.0, 0.7, 0.5, 0.6))
    monkeypatch.setattr(stage_times, "measure_curve", lambda *_: curve)
    report = run_plan(capsys, "--model", "tiny", "--gpu", "cpu", "--steps", "4", "--images-per-hour", "10")
    profile = model_profile(find_model("tiny"))
    cost = image_cost(profile, ImageSpec((64, 64), 4, profile.guidance_scale, profile.solver))
    assert report["stage_s"] == pytest.approx(
        {"encode": 2 * 0.2, "denoise": sum(map(curve.seconds_for, cost.ticks)), "decode": 0.6}
    )
    assert report["gpu"] == "this machine, measured"


def test_a_model_too_large_to_measure_uses_the_matrix_product_peak(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_times, "quick_gemm_peak", lambda *_: 2e12)
    report = run_plan(capsys, "--model", "pixart-sigma", "--gpu", "cpu")
    assert (report["peak_tflops"], report["mfu"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--gpu", "b200"), "--gpu must be one of a100, h100, h200, l40s, cpu, got 'b200'"),
        (
            ("--model", "nosuch"),
            "neither a folder nor one of emoji-128, emoji-128-turbo, tiny; published checkpoints: pixart-",
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
def test_a_users_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.setattr(
        stage_times, "measure_stage_times", lambda *_, **__: pytest.fail("a machine was measured")
    )
    code: str | int | None
    try:
        code = cli.main(["plan", *argv])
    except SystemExit as exit_error:
        code = exit_error.code
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert (code, out) == (2, "")
    assert complaint in line


PIXART_SIGMA = """\
image: pixart-sigma, 1024x1024, 20 steps of dpmpp_2m at guidance 4.5
device: NVIDIA A100 80 GB SXM, at 50 % of 312 TFLOPS
load: 1000 images/h, arriving at random

stage    TFLOP  seconds  replicas
encode   5.627   0.0361         1
denoise  263.5     1.69         1
decode   10.47   0.0671         1
total    279.6     1.79         3

metric                                     target  predicted  verdict
throughput of one device, images/h  at least 1000       2009      met
latency of an image alone, s            at most 5       1.79      met
latency p95 of one device, s            at most 5       5.44   missed
latency p95 of all replicas, s          at most 5       4.94      met

one device                                        predicted
utilisation                                             50%
most steps with throughput and latency alone met         41
most steps with latency p95 met                          19
cost of 1000 images                                  0.9958
"""


def test_the_text_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--model", "pixart-sigma", "--mfu", "0.5", "--price-per-hour", "2"]) == 0
    assert capsys.readouterr().out == PIXART_SIGMA


def test_a_latency_without_bound_misses_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--model", "flux.1-dev"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "latency p95 of one device, s at most 5 unbounded missed" in lines
    assert "throughput of one device, images/h at least 1000 214 missed" in lines


def test_a_mistake_is_found_without_torch() -> None:
    code = (
        "import sys; from safelight.service import cli; cli.main(['plan', '--gpu', 'x']);"
        "sys.exit(' '.join({'torch', 'ray'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
