"""Files and batches as OpenAI's objects."""

import math
from collections.abc import Mapping, Sequence

from safelight.service.batches.batch import Batch, BatchStatus
from safelight.service.batches.stored_file import StoredFile
from safelight.service.http.batches.schemas import (
    BatchFault,
    BatchFaults,
    BatchList,
    BatchObject,
    File,
    FileList,
    RequestCounts,
)
from safelight.service.jobs.job import OPEN_STATES, JobState

Counts = Mapping[JobState, int]


def describe_file(file: StoredFile) -> File:
    return File(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created),
        expires_at=math.ceil(file.expires),
        filename=file.filename,
        purpose=file.purpose,  # type: ignore[arg-type]
    )


def describe_files(files: Sequence[StoredFile], has_more: bool) -> FileList:
    return FileList(
        data=[describe_file(file) for file in files],
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
        has_more=has_more,
    )


def describe_batch(batch: Batch, counts: Counts) -> BatchObject:
    """A batch, whose lines are in these states."""
    faults = [
        BatchFault(code=fault.code, message=fault.message, param=fault.param, line=fault.line)
        for fault in batch.errors
    ]

    def ended(status: BatchStatus) -> int | None:
        return _time(batch.ended) if batch.status is status else None

    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,  # type: ignore[arg-type]
        errors=BatchFaults(data=faults) if faults else None,
        input_file_id=batch.input_file,
        status=batch.status,
        output_file_id=batch.output_file,
        error_file_id=batch.error_file,
        created_at=int(batch.created),
        in_progress_at=_time(batch.started),
        expires_at=math.ceil(batch.expires),
        finalizing_at=_time(batch.finalizing),
        completed_at=ended(BatchStatus.COMPLETED),
        failed_at=ended(BatchStatus.FAILED),
        expired_at=ended(BatchStatus.EXPIRED),
        cancelling_at=_time(batch.cancelling),
        cancelled_at=ended(BatchStatus.CANCELLED),
        request_counts=_request_counts(batch, counts),
        metadata=batch.metadata,
    )


def describe_batches(batches: Sequence[Batch], counts: Mapping[str, Counts], has_more: bool) -> BatchList:
    return BatchList(
        data=[describe_batch(batch, counts[batch.id]) for batch in batches],
        first_id=batches[0].id if batches else None,
        last_id=batches[-1].id if batches else None,
        has_more=has_more,
    )


def _request_counts(batch: Batch, counts: Counts) -> RequestCounts:
    """Of a batch whose lines are still being read, none."""
    if batch.status is BatchStatus.VALIDATING:
        return RequestCounts(total=0, completed=0, failed=0)
    total, completed = sum(counts.values()), counts.get(JobState.DONE, 0)
    num_open = sum(counts.get(state, 0) for state in OPEN_STATES)
    return RequestCounts(total=total, completed=completed, failed=total - completed - num_open)


def _time(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
