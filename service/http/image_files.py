"""The route of links: `/v1/images/files/NAME?expires=...&signature=...`."""

import time
from typing import Annotated

from fastapi import FastAPI, Query
from fastapi.responses import Response
from starlette.requests import Request

from safelight.service.errors import ImageNotStored, InvalidLink, LinkExpired
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.image_links import FILES_PATH
from safelight.service.http.openapi import ERRORS, OTHER_ERRORS
from safelight.service.image_store.names import ImageName

MEDIA_TYPES = ("image/png", "image/webp", "image/jpeg")
IMAGE = {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES}}
# What a browser may do with the file: show it, and run nothing.
FIXED_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
}

Expires = Annotated[int, Query(ge=0, description="Unix time at which the link ends.")]
Signature = Annotated[str, Query(max_length=200, description="Made by the service.")]


def add_file_routes(app: FastAPI, gateway: Gateway) -> None:
    """Answer the links that `response_format: url` has given, by any gateway of the same image store."""

    async def find(request: Request, name: str, expires: int, signature: str) -> Response:
        image_name = ImageName.parse(name)
        if image_name is None or gateway.image_store is None:
            raise ImageNotStored()
        signer = await gateway.image_store.signer()
        if not signer.is_valid(name, expires, signature):
            raise InvalidLink()
        seconds_left = expires - time.time()
        if seconds_left <= 0:
            raise LinkExpired()
        etag = f'"{image_name.digest}"'
        headers = FIXED_HEADERS | {
            "cache-control": f"private, max-age={int(seconds_left)}, immutable",
            "etag": etag,
            "content-disposition": f'inline; filename="safelight-{image_name.token}.{image_name.format}"',
        }
        data = await gateway.image_store.load(image_name)
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=image_name.media_type)

    @app.get(
        FILES_PATH + "/{name}",
        summary="An image that was answered as a link",
        response_class=Response,
        responses={
            200: IMAGE | {"description": "The image"},
            304: {"description": "The image that the caller has already"},
            **{status: ERRORS[status] for status in (400, 403, 404, 410, 503)},
            **OTHER_ERRORS,
        },
    )
    async def get_file(request: Request, name: str, expires: Expires, signature: Signature) -> Response:
        return await find(request, name, expires, signature)
