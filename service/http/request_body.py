"""Reads a request's body within limits, and detects a client that has disconnected."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from safelight.service.errors import BodyTooLarge, BodyTooSlow, ClientGone, WrongContentType
from safelight.service.http.reading.body import decompress, read_object
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

T = TypeVar("T")


async def read_json_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body of a JSON request.

    Raises `WrongContentType`, `BodyTooLarge` as soon as it is known to exceed `limit` bytes, `BodyTooSlow` if
    it has not arrived whole within `seconds`, and `ClientGone`.
    """
    if not is_json(content_type(request)):
        raise WrongContentType()
    return await read_body(request, limit, seconds)


def content_type(request: Request) -> str:
    """The media type of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body of a request; errors as in `read_json_body`."""
    too_large = BodyTooLarge(f"The body is larger than {limit} bytes, the most that is allowed.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {seconds:g} seconds.") from None
    except BodyTooLarge:
        raise
    except Exception:  # a disconnect: Starlette and Serve's proxy raise different classes
        raise ClientGone() from None
    return bytes(body)


async def read_json_object(request: Request, limit: int, seconds: float) -> dict[str, Any]:
    """The JSON object in the body of a request.

    Raises as `read_json_body`, `decompress` and `read_object` do; `limit` holds before and after
    decompression.
    """
    body = await read_json_body(request, limit, seconds)
    headers = request.headers
    body = decompress(body, headers.get("content-encoding", ""), limit)
    return read_object(body, headers.get("content-type", ""))


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`.

    When the client disconnects first, `work` is cancelled and waited for, and `ClientGone` is raised. The
    request's body must have been read before.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone()
        return task.result()
    finally:
        await cancel_and_wait(task, disconnect)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
