"""Benchmarks: commands that print ratios of things timed side by side. `make bench` runs `update`."""
