"""Measurements of this machine: cost curve, stage times, peak, and the checks of `safelight doctor`."""
