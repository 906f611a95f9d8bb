"""The operator's own filters: words that prompts may not hold, and a classifier of finished images."""
