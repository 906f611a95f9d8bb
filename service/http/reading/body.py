"""Turns the bytes of a body into a JSON object: compression, character set, byte order mark."""

import codecs
import json
import zlib
from email.message import Message
from typing import Any

import pydantic_core

from safelight.service.errors import BodyTooLarge, MalformedBody, UnsupportedEncoding

# Encodings of text whose decoders are linear; Python has others that are not.
CHARSETS = frozenset(
    {
        *(
            "ascii",
            "utf-8",
            "utf-8-sig",
            "utf-16",
            "utf-16-le",
            "utf-16-be",
            "utf-32",
            "utf-32-le",
            "utf-32-be",
        ),
        *("iso8859-1", "iso8859-15", "cp1252", "cp1251", "koi8-r"),
        *("shift_jis", "euc_jp", "euc_kr", "gb2312", "gbk", "gb18030", "big5"),
    }
)
CODINGS = ("gzip", "deflate")
MAX_CODINGS = 2


def read_object(body: bytes, content_type: str) -> dict[str, Any]:
    """The JSON object in `body`, whose text is in UTF-8 unless `content_type` names another `charset`.

    Raises `MalformedBody`, and `UnsupportedEncoding` for the character set.
    """
    text = _decode(body, content_type)
    try:
        value = pydantic_core.from_json(text)
    except ValueError as error:
        raise MalformedBody(f"The body is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise MalformedBody("The body must be a JSON object.")
    return value


def decompress(body: bytes, content_encoding: str, limit: int) -> bytes:
    """`body` without its content codings, which may be gzip and deflate.

    Raises `BodyTooLarge` if it has more than `limit` bytes then, `MalformedBody` if it is damaged, and
    `UnsupportedEncoding`.
    """
    names = [name.strip().lower().removeprefix("x-") for name in content_encoding.split(",")]
    codings = [name for name in names if name not in ("", "identity")]
    if len(codings) > MAX_CODINGS or not set(codings) <= set(CODINGS):
        raise UnsupportedEncoding(
            f"content-encoding {content_encoding[:100]!r} is not supported; allowed: {', '.join(CODINGS)}, "
            "or none."
        )
    for coding in reversed(codings):
        body = _inflate(body, coding, limit)
    return body


def _inflate(body: bytes, coding: str, limit: int) -> bytes:
    """One content coding undone, with no more than `limit` bytes in memory."""
    # wbits: gzip's header and checksum, zlib's, or raw deflate, which some clients send for `deflate`
    wbits = 31 if coding == "gzip" else 15 if body[:1] == b"\x78" else -15
    decompressor = zlib.decompressobj(wbits)
    try:
        inflated = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise MalformedBody(f"The body is not valid {coding}.") from None
    if len(inflated) > limit:
        raise BodyTooLarge(f"The body is larger than {limit} bytes when it is decompressed.")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedBody(f"The body is not valid {coding}: it is cut off, or more follows it.")
    return inflated


def _decode(body: bytes, content_type: str) -> str:
    """The text of `body`: in the character set of its mark, else of `content_type`, else in UTF-8."""
    charset = _charset(content_type)
    if charset == "utf-8":
        charset = json.detect_encoding(body[:4])  # a byte order mark, or the zeros of UTF-16 and UTF-32
    try:
        return body.decode(charset).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise MalformedBody(f"The body is not valid JSON (it is not text in {charset}).") from None


def _charset(content_type: str) -> str:
    header = Message()
    header["content-type"] = content_type
    named = header.get_param("charset", "utf-8")
    name = named[2] if isinstance(named, tuple) else str(named)
    try:
        charset = codecs.lookup(name.strip() or "utf-8").name
    except (LookupError, ValueError):
        charset = ""
    if charset not in CHARSETS:
        allowed = "utf-8, utf-16, iso-8859-1, windows-1252 and others"
        raise UnsupportedEncoding(f"charset {name[:100]!r} is not supported; allowed: {allowed}.")
    return charset
