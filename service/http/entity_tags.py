"""Entity tags: whether the copy of a file that a client has is the present one (RFC 9110, 13.1.2)."""

from starlette.requests import Request


def has_copy(request: Request, etag: str) -> bool:
    """Whether `If-None-Match` names `etag`, as one of several and also as a weak one."""
    tags = request.headers.get("if-none-match", "").split(",")
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in tags)
