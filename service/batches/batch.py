"""What a batch is: its states, and what it says of its input."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from safelight.service.jobs.job import IN_PROGRESS

DAY = 86_400.0  # in which a batch must be done: OpenAI's only `completion_window`


class BatchStatus(StrEnum):
    """What has become of a batch."""

    VALIDATING = "validating"
    IN_PROGRESS = IN_PROGRESS
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OPEN_STATUSES = (
    BatchStatus.VALIDATING,
    BatchStatus.IN_PROGRESS,
    BatchStatus.FINALIZING,
    BatchStatus.CANCELLING,
)


@dataclass(frozen=True, slots=True)
class InputFault:
    """A fault of the input file, for which the batch fails; `line` is from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A batch as it is submitted.

    Attributes:
        caller: Id of the API key; empty without keys.
        caller_name: The key's name.
        endpoint: Of all lines.
        input_file: Id of the file with the lines.
        metadata: The caller's own.
        base_url: What links to its images begin with.
        webhook: URL that is told its end.
        output_seconds: How long its output is kept.
    """

    caller: str
    caller_name: str
    endpoint: str
    input_file: str
    metadata: Mapping[str, str] | None
    base_url: str
    webhook: str | None
    output_seconds: float


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is in the database; the attributes are the columns."""

    id: str
    caller: str
    caller_name: str
    endpoint: str
    input_file: str
    status: BatchStatus
    outcome: BatchStatus
    metadata: dict[str, str] | None
    base_url: str
    webhook: str | None
    output_seconds: float
    max_images: int
    errors: tuple[InputFault, ...]
    output_file: str | None
    error_file: str | None
    created: float
    expires: float
    kept_until: float
    started: float | None
    cancelling: float | None
    finalizing: float | None
    ended: float | None
    lease_owner: str | None
    lease_until: float | None

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> "Batch":
        values = {name: row[name] for name in cls.__dataclass_fields__}
        errors = json.loads(values["errors"] or "[]")
        return cls(
            **values
            | {
                "status": BatchStatus(values["status"]),
                "outcome": BatchStatus(values["outcome"]),
                "metadata": None if values["metadata"] is None else json.loads(values["metadata"]),
                "errors": tuple(InputFault(**error) for error in errors),
            }
        )

    @property
    def is_open(self) -> bool:
        return self.status in OPEN_STATUSES
