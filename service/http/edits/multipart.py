"""Reads `multipart/form-data` into names and values, in memory."""

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from safelight.service.errors import MalformedBody

MAX_FILES = 17  # OpenAI's sixteen images and a mask
MAX_FIELDS = 100
CHUNK = 256 << 10  # bytes that are parsed before the event loop may do something else

FormValue = str | bytes  # the text of a field, or the content of a file


async def read_form(content_type: str, body: bytes) -> list[tuple[str, FormValue]]:
    """The fields and files of a form, in order. Raises `MalformedBody`.

    Args:
        content_type: The request's header, which names the boundary.
        body: The whole body; its size is limited where it is read.
    """
    return [(name, value) for name, value, _ in await read_named_form(content_type, body)]


async def read_named_form(content_type: str, body: bytes) -> list[tuple[str, FormValue, str]]:
    """As `read_form`, with the name that each file has at its client; empty for fields."""
    parser = _Parser(
        Headers({"content-type": content_type}),
        _chunks(body),
        max_files=MAX_FILES,
        max_fields=MAX_FIELDS,
        max_part_size=len(body),
    )
    try:
        form = await parser.parse()
        if not parser.is_complete:
            raise MalformedBody("The body is not a valid form: it ends before its last boundary.")
        return [(name, *await _content(value)) for name, value in form.multi_items()]
    except MultiPartException as error:
        raise MalformedBody(f"The body is not a valid form: {error.message.rstrip('.')}.") from None
    finally:
        parser.close()


class _Parser(MultiPartParser):
    """Starlette's parser, which keeps files in memory and notices a body that ends too early."""

    # Never a temporary file: the body is in memory already, and a gateway may have no folder to write to.
    spool_max_size = 1 << 40
    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True

    def close(self) -> None:
        """Close all files, also one that the body ended in."""
        for file in self._files_to_close_on_error:
            file.close()


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), CHUNK):
        yield body[start : start + CHUNK]
        await asyncio.sleep(0)


async def _content(value: str | UploadFile) -> tuple[FormValue, str]:
    return (await value.read(), value.filename or "") if isinstance(value, UploadFile) else (value, "")
