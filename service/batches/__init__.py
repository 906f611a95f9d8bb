"""Files and batches of requests, whose lines are jobs (docs/adr/0020)."""
