"""Reads a request as its client means it, from its bytes to its fields, and lists what was adjusted."""
