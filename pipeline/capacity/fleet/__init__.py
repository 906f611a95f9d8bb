"""A fleet of denoisers under a day's traffic, simulated with the service's own rules: who runs in a tick, how many replicas there are."""
