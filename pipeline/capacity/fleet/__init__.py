"""A fleet of denoisers under a day's traffic, simulated with the service's own batching and autoscaling."""
