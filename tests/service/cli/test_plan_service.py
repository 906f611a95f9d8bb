"""`safelight plan --service URL`: forecasts from the cost curves that a gateway answers over HTTP."""

import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safelight.pipeline.calibration import stage_times
from safelight.pipeline.capacity import devices
from safelight.pipeline.capacity.devices import measured_device
from safelight.pipeline.capacity.image_cost import ImageSpec, image_cost
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service import cli
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import StageStatus
from safelight.service.settings import Settings
from tests.fakes import FakeBackend
from tests.models.folders import write_dit
from tests.service.http.keyed import make_keys
from tests.service.http_server import served

CURVES = {
    "encode": CostCurve((1e6,), (0.001,), slowdown=2.0),
    "denoise": CostCurve((1e6, 4e6, 16e6), (0.010, 0.020, 0.060), slowdown=1.5),
    "decode": CostCurve((1e6,), (0.004,), slowdown=0.5),
}


@contextmanager
def service(model: str = "tiny", curves: Mapping[str, CostCurve] = CURVES, **settings: Any) -> Iterator[str]:
    """The URL of a gateway over stages that report `curves`."""
    stages = {stage: StageStatus(images=1, curve=curves.get(stage)) for stage in CURVES}
    with served(build_gateway(FakeBackend(stages=stages), find_model(model), Settings(**settings))) as url:
        yield url


def plan(capsys: pytest.CaptureFixture[str], url: str, *argv: str) -> dict[str, Any]:
    assert cli.main(["plan", "--json", "--gpu", "cpu", "--service", url, *argv]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line on stderr with which `argv` is refused."""
    assert cli.main(["plan", *argv]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert out == ""
    return line


@pytest.fixture(autouse=True)
def _only_the_services_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "TRACE_IMAGES", 10)  # of each simulated queue, for speed
    monkeypatch.setattr(
        stage_times, "measure_stage_times", lambda *_, **__: pytest.fail("this machine was measured")
    )


def test_the_seconds_are_those_of_the_services_curves(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as url:
        report = plan(capsys, url, "--model", "tiny", "--steps", "4", "--images-per-hour", "10")
    assert (report["gpu"], report["mfu"], report["peak_tflops"]) == (f"the service at {url}", None, None)
    profile = model_profile(find_model("tiny"))
    cost = image_cost(profile, ImageSpec((64, 64), 4, profile.guidance_scale, profile.solver))
    assert report["stage_s"] == pytest.approx(
        {
            "encode": 2 * 2.0 * 0.001 * profile.text / 1e6,  # prompt and negative prompt
            "denoise": sum(CURVES["denoise"].seconds_for(work) for work in cost.ticks),
            "decode": 0.5 * 0.004 * cost.decode / 1e6,
        }
    )
    assert report["service_s"] == pytest.approx(sum(report["stage_s"].values()))


@pytest.mark.parametrize("limits", [(2, 0), (16, 0), (16, 100)])
def test_the_limits_of_a_tick_are_the_services(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    with service(max_rows=limits[0], max_tokens=limits[1]) as url:
        # settings of the machine that plans, which is not the one that serves
        monkeypatch.setenv("SAFELIGHT_MAX_ROWS", "4")
        monkeypatch.setenv("SAFELIGHT_MAX_TOKENS", "64")
        report = plan(capsys, url, "--model", "tiny", "--steps", "4")
    profile = model_profile(find_model("tiny"))
    cost = image_cost(profile, ImageSpec((64, 64), 4, profile.guidance_scale, profile.solver))
    device = measured_device(CURVES, profile, (64, 64), *limits)
    assert report["images_per_hour_per_device"] == pytest.approx(3600 / device.marginal_seconds(cost))


def test_larger_ticks_give_more_images(capsys: pytest.CaptureFixture[str]) -> None:
    rates = []
    for max_rows in (2, 16):
        with service(max_rows=max_rows) as url:
            rates.append(plan(capsys, url, "--model", "tiny")["images_per_hour_per_device"])
    assert rates[0] < rates[1]


def test_a_class_label_costs_no_text_encoding(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_dit(tmp_path / "dit")
    curves = {stage: curve for stage, curve in CURVES.items() if stage != "encode"}
    with service(str(tmp_path / "dit"), curves) as url:
        assert plan(capsys, url, "--model", str(tmp_path / "dit"))["stage_s"]["encode"] == 0.0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--mfu", "0.4"), "--mfu has no effect with --service"),
        (("--peak-tflops", "2"), "--peak-tflops has no effect with --service"),
        (("--gpu", "a100"), "--service needs --gpu cpu"),
    ],
)
def test_a_flag_without_effect_is_refused(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], complaint: str
) -> None:
    argv = ("--gpu", "cpu", "--service", "http://127.0.0.1:9", "--model", "tiny", *flags)
    assert complaint in refusal(capsys, *argv)


def test_curves_of_another_model_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with service() as url:
        argv = ("--gpu", "cpu", "--service", url)
        for model in ((), ("--model", "emoji-128")):
            line = refusal(capsys, *argv, *model)
            assert line.endswith(f"--service {url} serves 'tiny', not 'emoji-128'; give its --model")
        folder = tmp_path / "same-weights-under-another-name"
        shutil.copytree(find_model("tiny").path, folder)
        assert plan(capsys, url, "--model", str(folder))["model"] == folder.name


def test_a_stage_that_is_not_measured_yet_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    curves = {stage: curve for stage, curve in CURVES.items() if stage != "decode"}
    with service("tiny", curves) as url:
        line = refusal(capsys, "--gpu", "cpu", "--service", url, "--model", "tiny")
    assert line.endswith("has not measured its stage 'decode' yet")


def test_a_service_without_curves_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with service("tiny", {}) as url:
        line = refusal(capsys, "--gpu", "cpu", "--service", url, "--model", "tiny")
    assert f"--service {url} has no cost curves" in line and "503" in line
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    nowhere = f"http://127.0.0.1:{port}"
    line = refusal(capsys, "--gpu", "cpu", "--service", nowhere, "--model", "tiny")
    assert f"--service {nowhere} has no cost curves" in line


def test_a_service_with_api_keys_gets_the_one_in_the_environment(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = make_keys(tmp_path)
    with service(require_api_keys="always", database=str(tmp_path)) as url:
        assert "401" in refusal(capsys, "--gpu", "cpu", "--model", "tiny", "--service", url)
        monkeypatch.setenv("SAFELIGHT_KEY", keys.secrets["alice"])
        assert plan(capsys, url, "--model", "tiny")
