"""Which samples run in the next tick, when each will be done, how many replicas it takes; no torch."""
