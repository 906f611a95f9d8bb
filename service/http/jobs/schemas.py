"""The JSON of jobs."""

from typing import Literal

from pydantic import BaseModel, Field

from safelight.service.http.schemas import ErrorDetail, ImageResponse

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]


class JobObject(BaseModel):
    """A request for images that is drawn without its caller."""

    id: str
    object: Literal["image_job"] = "image_job"
    kind: Literal["generation", "edit"]
    state: State
    model: str
    n: int = Field(description="How many images.")
    created_at: int = Field(description="Unix time.")
    started_at: int | None = Field(description="When it was first begun.")
    ended_at: int | None
    expires_at: int = Field(description="When it and its images are no longer kept.")
    position: int | None = Field(
        description="How many queued jobs are older than a queued one; callers take turns. Null in lists, "
        "and of other jobs."
    )
    forecast_seconds: float | None = Field(
        description="Estimate of the seconds until it is done; null if this gateway does not know."
    )
    steps: int = Field(description="Solver steps of all images.")
    steps_done: int = Field(description="Of these, those done; an estimate while it runs.")
    attempts: int = Field(description="How often it was begun.")
    request_id: str = Field(description="Of the request that submitted it.")
    result: ImageResponse | None = Field(description="Once it is done: the answer, with links to the images.")
    error: ErrorDetail | None = Field(description="Of a failed one.")


class JobList(BaseModel):
    """Jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
