"""Reading a request's body, and noticing that its sender has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from safelight.service.errors import BodyTooLarge, BodyTooSlow, ClientGone, WrongContentType
from safelight.service.runtime.asyncio_tasks import cancel_and_wait

T = TypeVar("T")


async def read_json_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body, refused as early as its length is known to be over `limit` bytes, or after `seconds` without its end."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise WrongContentType()
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
    except Exception:  # starlette has one for a sender that has gone, Serve's proxy another
        raise ClientGone() from None
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled, and waited for, when the client goes away. The body must have been read."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone()
        return working.result()
    finally:
        await cancel_and_wait(working, watching)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
