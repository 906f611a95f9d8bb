"""Measurements that are kept for the denoisers that come later."""

from pathlib import Path

import pytest

from safelight.pipeline.calibration.saved import Calibration, load_calibration, save_calibration
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve

MEASURED = Calibration(CostCurve((1e9, 3e9), (0.1, 0.2), slowdown=1.5, ticks_seen=7), 2e11, Limits(8, 512))


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_calibration(tmp_path / "a.json", MEASURED)
    assert load_calibration(tmp_path / "a.json") == MEASURED
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"curve": {"work": [2], "seconds": [-1]}}'])
def test_what_cannot_be_read_is_measured_again(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    assert load_calibration(tmp_path / "a.json") is None
