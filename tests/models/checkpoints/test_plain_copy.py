"""A copy of a checkpoint that other libraries read."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.models.checkpoints import plain_copy
from safelight.models.checkpoints.int8_rows import quantise_matrices, quantise_rows, restore_rows


def test_matrices_become_float32_and_all_else_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "part").mkdir(parents=True)
    (source / "index.json").write_text("{}")
    matrix, tokens = torch.randn(64, 64, generator=torch.manual_seed(0)), torch.arange(3)
    save_file(quantise_matrices({"matrix": matrix, "tokens": tokens}), source / "part" / "a.safetensors")
    monkeypatch.setattr(sys, "argv", ["plain_copy", str(source), str(target)])
    plain_copy.main()
    tensors = load_file(target / "part" / "a.safetensors")
    assert tensors.keys() == {"matrix", "tokens"}
    assert torch.equal(tensors["matrix"], restore_rows(*quantise_rows(matrix)))
    assert torch.equal(tensors["tokens"], tokens)
    assert (target / "index.json").read_text() == "{}"


def test_a_folder_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plain_copy", str(tmp_path / "gone"), str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        plain_copy.main()
    assert ended.value.code == 2 and "gone is not a folder" in capsys.readouterr().err
