"""The secret that a request carries: in one header `Authorization`, and nowhere else."""

import base64
import binascii
import re
from secrets import compare_digest

from pydantic import SecretStr
from starlette.requests import Request

from safelight.service.errors import InvalidKey, Unauthorized

MAX_CHARACTERS = 1024  # of a header; a key has 46
BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+)", re.ASCII | re.IGNORECASE)  # RFC 6750
BASIC = re.compile(r"basic +([A-Za-z0-9+/]+={0,2})", re.ASCII | re.IGNORECASE)  # RFC 7617
BASIC_SCHEME = 'Basic realm="safelight", charset="UTF-8"'


def read_secret(request: Request, takes_basic: bool) -> str:
    """The secret of a request: a bearer's token, or the password of HTTP basic authentication.

    Programs that speak AUTOMATIC1111's API know only the latter; any user name goes with it.

    Raises `InvalidKey` if there is none, or more than one.
    """
    scheme = BASIC_SCHEME if takes_basic else None
    values = request.headers.getlist("authorization")
    if not values:
        raise InvalidKey(scheme=scheme)
    if len(values) > 1:
        raise InvalidKey("The header authorization is there more than once.", scheme)
    value = values[0].strip(" ")
    if len(value) <= MAX_CHARACTERS:
        if match := BEARER.fullmatch(value):
            return match[1]
        if takes_basic and (match := BASIC.fullmatch(value)):
            return _password(match[1])
    form = "Bearer KEY, or Basic with the key as password" if takes_basic else "Bearer KEY"
    raise InvalidKey(f"The header authorization must be: {form}.", scheme)


def check_operator(request: Request, *keys: SecretStr, error: type[Unauthorized] = Unauthorized) -> None:
    """Raise `error` unless the request carries one of `keys`; empty ones count as none."""
    values = request.headers.getlist("authorization")
    match = re.fullmatch(r"bearer +(.+)", values[0].strip(" "), re.IGNORECASE) if len(values) == 1 else None
    # Headers are decoded as Latin-1; a key with other characters is compared by its bytes.
    token = match[1].encode("latin-1") if match is not None and len(values[0]) <= MAX_CHARACTERS else b""
    matches = [compare_digest(token, key.get_secret_value().encode()) for key in keys]
    if not any(is_equal and key.get_secret_value() for is_equal, key in zip(matches, keys, strict=True)):
        raise error()


def _password(encoded: str) -> str:
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return text.partition(":")[2]
