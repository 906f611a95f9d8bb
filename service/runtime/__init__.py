"""Helpers for every process of the service: faster imports, cancelling asyncio tasks, the number of cores."""
