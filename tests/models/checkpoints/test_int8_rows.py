"""Matrices stored in int8: what is read is what was written, to half a step of each row's scale."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safelight.models.checkpoints.int8_rows import ROW_SCALE, quantise_matrices, quantise_rows, restore_rows
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.tensors import WEIGHTS, list_tensors, read_stored, shapes_of


def test_every_row_is_restored_to_half_a_step_of_its_own_scale() -> None:
    matrix = torch.randn(8, 700, generator=torch.manual_seed(0)) * torch.logspace(-6, 3, 8)[:, None]
    restored = restore_rows(*quantise_rows(matrix))
    assert ((restored - matrix).abs() <= matrix.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
    assert torch.equal(restored.abs().amax(1), matrix.abs().amax(1))


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(restore_rows(*quantise_rows(torch.zeros(2, 3))), torch.zeros(2, 3))


def test_only_large_matrices_are_quantised() -> None:
    tensors = {
        "large": torch.ones(64, 64, dtype=torch.bfloat16),
        "small": torch.ones(63, 64),
        "tokens": torch.ones(64, 64, dtype=torch.int64),
        "kernel": torch.ones(64, 64, 3, 3),
    }
    quantised = quantise_matrices(tensors)
    assert quantised.keys() == tensors.keys() | {"large" + ROW_SCALE}
    assert quantised["large"].dtype == torch.int8
    assert all(quantised[name] is tensors[name] for name in ("small", "tokens", "kernel"))


def test_a_file_reads_as_if_it_held_the_matrices(tmp_path: Path) -> None:
    matrix = torch.randn(64, 80, generator=torch.manual_seed(0))
    save_file(quantise_matrices({"a.weight": matrix, "a.bias": torch.ones(64)}), tmp_path / WEIGHTS)
    stored = list_tensors(tmp_path)
    assert shapes_of(stored) == {"a.weight": (64, 80), "a.bias": (64,)}
    tensors = read_stored(stored, "cpu", torch.float32)
    assert torch.equal(tensors["a.weight"], restore_rows(*quantise_rows(matrix)))
    assert (tmp_path / WEIGHTS).stat().st_size < matrix.nbytes / 3


@pytest.mark.parametrize("scale", [None, torch.ones(2), torch.ones(64, 1)])
def test_int8_without_a_scale_for_every_row_is_refused(tmp_path: Path, scale: torch.Tensor | None) -> None:
    tensors = {"a": torch.ones(64, 80, dtype=torch.int8)} | (
        {} if scale is None else {"a" + ROW_SCALE: scale}
    )
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="tensor a is stored as I8, only F64"):
        list_tensors(tmp_path)
