"""Submissions and results of jobs, for tests."""

from typing import Any

from safelight.pipeline.params import EditParams
from safelight.service.jobs.job import JobResult, JobWork, Submission
from safelight.service.messages import ImageFormat, Upload
from tests.fakes import make_params

RESULT = JobResult(("a.png",), {"created": 1})
WORK = JobWork((make_params(seed=7), make_params(seed=7, image_index=1)), ImageFormat("webp", 80))


def make_submission(caller: str = "alice", **changes: Any) -> Submission:
    values: dict[str, Any] = {
        "caller": caller,
        "caller_name": caller.title(),
        "request_id": "request",
        "kind": "generation",
        "model": "fake-8",
        "work": WORK,
        "digest": "0" * 64,
    }
    return Submission(**values | changes)


def make_edit(num_bytes: int = 10, **changes: Any) -> Submission:
    edit = make_params(edit=EditParams(0.5, is_inpainting=True), guidance_interval=(0.1, 0.7))
    upload = Upload(bytes(num_bytes - 4), b"mask", None, ((8, 8), (16, 8)))
    work = JobWork((edit,), ImageFormat(), ({"field": "f"},), upload.size, upload.sizes)
    return make_submission(kind="edit", work=work, upload=upload, **changes)
