"""Checks and sizes of checkpoint folders, from configurations and file headers alone."""
