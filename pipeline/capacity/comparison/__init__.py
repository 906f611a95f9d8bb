"""Scheduling policies compared by simulation: `safelight simulate --compare`."""
