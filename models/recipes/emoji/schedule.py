"""The noise schedule of `emoji-128` and its student, as the options of a diffusers scheduler."""

from safelight.models.checkpoints.writer import FLOW_SCHEDULER

# The concept of an image is decided at high noise, where a grid of equal steps in time has few points.
SCHEDULER = FLOW_SCHEDULER | {"flow_shift": 2.0}
