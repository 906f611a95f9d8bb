"""The setting `quantization`: what it may be, and that it reaches the denoiser by every way there is."""

import json
from pathlib import Path

import pytest
import torch

from safelight.models.packed import int8
from safelight.models.packed.int8 import Int8
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.prompts import Prompt, write_prompts
from safelight.service import cli
from safelight.service.inprocess import InProcessPipeline
from safelight.service.settings import BadSetting, Settings, read_settings
from tests.service.cli.test_eval import examined  # noqa: F401  a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself


def test_it_is_none_unless_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings({}).quantization == "none"
    monkeypatch.setenv("SAFELIGHT_QUANTIZATION", "int8")
    assert read_settings({}).quantization == "int8"
    with pytest.raises(BadSetting, match="quantization must be one of none, int8, got 'int4'"):
        read_settings({"quantization": "int4"})


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_a_bad_one_is_one_line(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "--quantization", "int4"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"safelight {command}: quantization must be one of none, int8, got 'int4'\n")


def test_eval_draws_with_it_and_keeps_the_images_apart(
    capsys: pytest.CaptureFixture[str],
    examined: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.jsonl"
    write_prompts(file, [Prompt("red apple", ("1f34e",))])
    kept = tmp_path / "kept"
    kept.mkdir()
    for quantization in ("none", "int8"):
        argv = [
            "--prompts",
            str(file),
            "--steps",
            "2",
            "--keep",
            str(kept),
            "--quantization",
            quantization,
            "--json",
        ]
        assert cli.main(["eval", "--model", str(examined), *argv]) == 0
        assert json.loads(capsys.readouterr().out)["quantization"] == quantization
    assert len([*kept.glob("*.png")]) == 2  # the second was not taken for the first


def test_the_service_has_it_from_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    real = Int8.on
    monkeypatch.setattr(Int8, "on", lambda device, dtype: asked.append(dtype) or real(device, dtype))
    for quantization, times in (("none", 0), ("int8", 1)):
        pipeline = InProcessPipeline(find_model("tiny"), Settings(model="tiny", quantization=quantization))
        pipeline.wait()
        pipeline.close()
        assert len(asked) == times


def test_a_device_that_cannot_is_one_line(
    capsys: pytest.CaptureFixture[str], examined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # noqa: F811
    def refuse(device: torch.device, dtype: torch.dtype) -> Int8:
        raise int8.QuantizationUnavailable("quantization int8 does not work on cpu here: no compiler")

    monkeypatch.setattr(Int8, "on", refuse)
    assert cli.main(["eval", "--model", str(examined), "--quantization", "int8"]) == 2
    assert (
        capsys.readouterr().err
        == "safelight eval: quantization int8 does not work on cpu here: no compiler\n"
    )
