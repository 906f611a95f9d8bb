"""The step engine: running samples, their batch, and the networks before and after it."""
