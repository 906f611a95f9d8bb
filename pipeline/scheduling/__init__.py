"""Which samples run in the next tick, when each will finish, and how many replicas a load needs. No torch."""
