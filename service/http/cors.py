"""Cross-origin requests from browsers: which origins the operator allows."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from safelight.service.http.limit_headers import HEADERS

METHODS = ("GET", "HEAD", "POST", "DELETE")
# What a page of another origin may read, beside the headers that every page may.
EXPOSED = (
    "x-request-id",
    "x-safelight-adjusted",
    "openai-processing-ms",
    "retry-after",
    "x-should-retry",
    *HEADERS,
)


def add_cors(app: FastAPI, origins: Sequence[str]) -> None:
    """Let pages of `origins`, or of every origin for `*`, call `app`; without any, a browser refuses.

    Cookies are never sent along: the service has none.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
