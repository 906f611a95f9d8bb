"""What a file is, without its content."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INPUT_PURPOSE, OUTPUT_PURPOSE = "batch", "batch_output"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it is in the database; the attributes are columns."""

    id: str
    caller: str
    filename: str
    purpose: str
    num_bytes: int
    created: float
    expires: float
    batch: str | None

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> "StoredFile":
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})
