"""The setting `quantization`: its values, and how the commands and the service pass it to the denoiser."""

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
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings, read_settings
from tests.service.cli.test_eval import examined  # noqa: F401  a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself


def test_it_is_none_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings({}).quantization == "none"
    monkeypatch.setenv("SAFELIGHT_QUANTIZATION", "int8")
    assert read_settings({}).quantization == "int8"
    with pytest.raises(BadSetting, match="quantization must be one of none, int8, got 'int4'"):
        read_settings({"quantization": "int4"})


@pytest.mark.parametrize("command", ["eval", "bench"])
def test_an_invalid_value_is_one_line(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "--quantization", "int4"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"safelight {command}: quantization must be one of none, int8, got 'int4'\n")


def test_eval_uses_it_and_keeps_its_images_apart(
    capsys: pytest.CaptureFixture[str],
    examined: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.jsonl"
    write_prompts(file, [Prompt("red apple", ("1f34e",))])
    folder = tmp_path / "kept"
    folder.mkdir()
    for quantization in ("none", "int8"):
        argv = ["--prompts", str(file), "--steps", "2", "--keep", str(folder), "--quantization", quantization]
        assert cli.main(["eval", "--model", str(examined), *argv, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["quantization"] == quantization
    assert len([*folder.glob("*.png")]) == 2  # one for each quantization


def test_the_service_reads_it_from_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[torch.dtype] = []
    real = Int8.on

    def recorded_on(device: torch.device, dtype: torch.dtype) -> Int8:
        dtypes.append(dtype)
        return real(device, dtype)

    monkeypatch.setattr(Int8, "on", recorded_on)
    for quantization, num_calls in (("none", 0), ("int8", 1)):
        pipeline = InProcessPipeline(find_model("tiny"), Settings(model="tiny", quantization=quantization))
        pipeline.wait()
        pipeline.close()
        assert len(dtypes) == num_calls


def test_an_unsupported_device_is_one_line(
    capsys: pytest.CaptureFixture[str],
    examined: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(device: torch.device, dtype: torch.dtype) -> Int8:
        raise int8.QuantizationUnavailable("quantization int8 does not work on cpu here: no compiler")

    monkeypatch.setattr(Int8, "on", refuse)
    assert cli.main(["eval", "--model", str(examined), "--quantization", "int8"]) == 2
    assert (
        capsys.readouterr().err
        == "safelight eval: quantization int8 does not work on cpu here: no compiler\n"
    )
