"""The JSON of files and batches, as OpenAI writes it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from safelight.service.batches.batch import BatchStatus

MAX_METADATA = 16
MIN_SECONDS, MAX_SECONDS = 3600, 2_592_000  # that a file may be kept, by its caller's wish

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]
Purpose = Literal["batch", "batch_output"]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
]


class ExpiresAfter(BaseModel):
    """How long a file is kept."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"] = Field(description="The file's own creation.")
    seconds: int = Field(
        ge=MIN_SECONDS, le=MAX_SECONDS, description="At most the service's own (file_seconds) counts."
    )


class NewBatch(BaseModel):
    """A batch of requests."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(max_length=64, description="A file with the purpose `batch`.")
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class File(BaseModel):
    """A file that was uploaded, or the output of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix time.")
    expires_at: int = Field(description="When it is no longer kept.")
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    """Files of a caller."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchFault(BaseModel):
    """A fault of the input file."""

    code: str
    message: str
    param: str | None
    line: int | None = Field(description="From 1.")


class BatchFaults(BaseModel):
    """The faults of the input file."""

    object: Literal["list"] = "list"
    data: list[BatchFault]


class RequestCounts(BaseModel):
    """Requests of a batch."""

    total: int
    completed: int
    failed: int = Field(description="Also those that were not drawn before the batch ended.")


class BatchObject(BaseModel):
    """Requests for images that are drawn when nothing else is."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchFaults | None = Field(description="Of a failed one.")
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None = Field(description="The answers, a line for each request that was drawn.")
    error_file_id: str | None = Field(description="Errors, a line for each other request.")
    created_at: int = Field(description="Unix time.")
    in_progress_at: int | None
    expires_at: int = Field(description="What is not drawn before is not drawn any more.")
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """Batches of a caller, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
