"""What a job is: its states, what it draws, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from safelight.pipeline.params import GenerationParams
from safelight.service.errors import ServiceError
from safelight.service.messages import ImageFormat, Upload

# A higher one is drawn first. Someone waits for the answer to a request with an Idempotency-Key.
INTERACTIVE_PRIORITY, JOB_PRIORITY, BATCH_PRIORITY = 1, 0, -1
IN_PROGRESS = "in_progress"  # the status of a batch whose lines are drawn
GENERATION, EDIT = "generation", "edit"  # kinds of jobs


class JobState(StrEnum):
    """What has become of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # it was not begun in time, or its images are not kept any more


OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class JobWork:
    """What a job draws, with every choice made: a second drawing gives the same bytes.

    Attributes:
        params: Of each image.
        output: The format of all.
        adjustments: What was read in another way than it was written.
        upload_size: Of the edited image; None if it follows the upload.
        upload_sizes: Among which it is then chosen.
        has_links: Whether the answer to a line of a batch has links to the images.
        has_files: Whether it has the images themselves.
        deadline_ms: Of a request whose caller waits: in which its images must be there.
        priority: Of such a request.
    """

    params: tuple[GenerationParams, ...]
    output: ImageFormat
    adjustments: tuple[dict[str, Any], ...] = ()
    upload_size: tuple[int, int] | None = None
    upload_sizes: tuple[tuple[int, int], ...] = ()
    has_links: bool = False
    has_files: bool = True
    deadline_ms: int | None = None
    priority: int = 0

    @property
    def steps(self) -> int:
        """The solver steps of all images."""
        return sum(params.steps_taken for params in self.params)

    def to_json(self) -> str:
        return _work_type().dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "JobWork":
        """The work that was stored, also by a version with fewer fields."""
        return _work_type().validate_json(text)


@dataclass(frozen=True, slots=True)
class Submission:
    """A job as it is submitted.

    Attributes:
        caller: Id of the API key; empty without keys.
        caller_name: The key's name.
        request_id: Of the request that submits it.
        kind: Whether it is a `generation` or an `edit`.
        model: Id of the model.
        work: What it draws.
        digest: SHA-256 of what the client sent.
        user: Hash of the person whose request it is.
        upload: The files of an edit.
        idempotency_key: The client's; None without one.
        webhook: URL that is told its end.
        is_interactive: Whether the caller waits for the images, which are drawn at once.
    """

    caller: str
    caller_name: str
    request_id: str
    kind: str
    model: str
    work: JobWork
    digest: str
    user: str = ""
    upload: Upload | None = field(default=None, repr=False)
    idempotency_key: str | None = None
    webhook: str | None = None
    is_interactive: bool = False


@dataclass(frozen=True, slots=True)
class JobResult:
    """The images of a job that is done, by their names in the image store, and the answer around them."""

    names: tuple[str, ...]
    response: dict[str, Any]

    def to_json(self) -> str:
        return _result_type().dump_json(self).decode()


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job has failed: what a request would have been answered."""

    status: int
    message: str
    type: str
    param: str | None
    code: str
    retry_after: int | None = None
    should_retry: bool = False

    @classmethod
    def of(cls, error: ServiceError) -> "JobError":
        retry = error.retry_after, error.should_retry
        return cls(error.status, str(error), error.type, error.param, error.code, *retry)

    def as_service_error(self) -> ServiceError:
        """The error as it was raised where the job was drawn."""
        error = ServiceError(self.message, self.param)
        error.status, error.type, error.code = self.status, self.type, self.code
        error.retry_after, error.should_retry = self.retry_after, self.should_retry
        return error

    def to_json(self) -> str:
        return _error_type().dump_json(self).decode()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch.

    Attributes:
        number: From 1.
        custom_id: The client's name of it.
        submission: What it draws.
        error: Why it is not drawn.
    """

    number: int
    custom_id: str
    submission: Submission
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is in the database; the attributes are the columns."""

    id: str
    caller: str
    caller_name: str
    user: str
    request_id: str
    kind: str
    state: JobState
    priority: int
    model: str
    work: JobWork
    num_images: int
    steps: int
    steps_done: int
    idempotency_key: str | None
    idempotency_until: float | None
    digest: str
    created: float
    due: float
    expires: float
    started: float | None
    ended: float | None
    attempt: int
    failures: int
    lease_owner: str | None
    lease_until: float | None
    webhook: str | None
    result: JobResult | None
    error: JobError | None
    batch: str | None = None  # of which it is a line
    line: int | None = None
    custom_id: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> "Job":
        values = {name: row[name] for name in cls.__dataclass_fields__}
        result, error = values["result"], values["error"]
        return cls(
            **values
            | {
                "state": JobState(values["state"]),
                "work": JobWork.from_json(values["work"]),
                "result": None if result is None else _result_type().validate_json(result),
                "error": None if error is None else _error_type().validate_json(error),
            }
        )

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def is_interactive(self) -> bool:
        """Whether somebody waits for it: an error is then an answer, unless the waiting gateway died."""
        return self.priority == INTERACTIVE_PRIORITY and self.attempt <= 1


@cache
def _work_type() -> TypeAdapter[JobWork]:
    return TypeAdapter(JobWork)


@cache
def _result_type() -> TypeAdapter[JobResult]:
    return TypeAdapter(JobResult)


@cache
def _error_type() -> TypeAdapter[JobError]:
    return TypeAdapter(JobError)
