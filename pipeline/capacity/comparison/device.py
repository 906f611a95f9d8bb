"""The device that policies are compared on: one cost curve and one limit for all comparisons."""

from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve

# Seconds of ticks of 1, 2, 4, ... rows of the embedded model on two cores, rounded. Work is counted in rows.
CURVE = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (0.008, 0.012, 0.020, 0.034, 0.062, 0.130))
LIMITS = Limits(16, 16 * 64)
TOKENS = 64  # of a row
ROWS = (1, 2, 2)  # an image has one or two, at random


def capacity(mean_steps: float) -> float:
    """Images a second that a device can do in full ticks, by the mean steps of an image."""
    mean_rows = sum(ROWS) / len(ROWS)
    return LIMITS.max_rows / CURVE.seconds_for(LIMITS.max_rows) / (mean_steps * mean_rows)
