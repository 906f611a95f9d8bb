"""What of a ledger has changed since it was kept last."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

WHOLE = 0  # stands for the minute of the sums since the accounts began


@dataclass(slots=True)
class Changes:
    """Keys of what has changed. `is_urgent`: more than the time that replicas were alive."""

    accounts: set[tuple[int, str, str]] = field(default_factory=set)  # minute, key and model
    stages: set[tuple[int, str, str]] = field(default_factory=set)  # minute, stage and model
    series: set[str] = field(default_factory=set)  # models
    records: set[str] = field(default_factory=set)  # ids
    sources: set[str] = field(default_factory=set)
    is_urgent: bool = False

    def take(self) -> Changes:
        """Take out what has changed."""
        taken = Changes(**{item.name: getattr(self, item.name) for item in fields(Changes)})
        for item in fields(Changes):
            setattr(self, item.name, False if item.name == "is_urgent" else set())
        return taken

    def put_back(self, taken: Changes) -> None:
        """Add what could not be kept."""
        for item in fields(Changes):
            setattr(self, item.name, getattr(self, item.name) | getattr(taken, item.name))
