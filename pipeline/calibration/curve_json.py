"""The JSON form of a cost curve, as `safelight bench` and `safelight doctor` print it."""

from safelight.pipeline.scheduling.cost_curve import CostCurve


def curve_as_dict(curve: CostCurve) -> dict[str, object]:
    """`work` in floating-point operations, `seconds` of a tick of that work, and how both are corrected."""
    return {
        "work": curve.work,
        "seconds": curve.seconds,
        "factor": curve.slowdown,
        "ticks_seen": curve.ticks_seen,
    }
