"""Checkpoint folders on disk: recognised, read strictly, and written."""
