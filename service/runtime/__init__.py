"""Helpers for every process of the service: faster imports, and cancelling asyncio tasks."""
