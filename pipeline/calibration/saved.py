"""What a denoiser measured at its start, in a file for those that replace it on the same machine."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measurements of one engine."""

    curve: CostCurve
    peak_flops: float
    limits: Limits


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration, as a whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(asdict(calibration)), encoding="utf-8")
    part.replace(path)


def load_calibration(path: Path) -> Calibration | None:
    """Read a calibration; None if there is none that can be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        curve = fields["curve"]
        points = {name: tuple(curve[name]) for name in ("work", "seconds")}
        return Calibration(
            CostCurve(**curve | points), float(fields["peak_flops"]), Limits(**fields["limits"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
