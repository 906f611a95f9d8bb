"""Which samples run in the next tick, when each will finish, how many replicas a load needs; no torch."""
