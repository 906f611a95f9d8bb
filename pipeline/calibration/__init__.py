"""What this machine measures of itself: cost curves, stage times, peak throughput, diagnosis."""
