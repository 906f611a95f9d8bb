"""Where images are stored: a folder of this machine, or a bucket by its URL."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safelight.service.runtime.user_folders import user_data

# Schemes of buckets that obstore knows, and with which it reads its credentials from the environment.
BUCKET_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
DEFAULT_FOLDER = "safelight/images"  # in the user's folder for data
FOLDER_MODE = 0o700


class BadLocation(ValueError):
    """A place that cannot be an image store; the message says what is allowed."""


def check_location(text: str) -> str:
    """`text` if it is the path of a folder or the URL of a folder or bucket. Raises `BadLocation`."""
    scheme = _scheme(text)
    if scheme is None or scheme == "file":
        if not folder_of(text).is_absolute():
            raise BadLocation(f"must be an absolute path or a URL, got {text[:200]!r}")
    elif scheme not in BUCKET_SCHEMES:
        allowed = ", ".join(f"{name}://" for name in ("file", *BUCKET_SCHEMES))
        raise BadLocation(f"must be a path or a URL that starts with one of {allowed}; got {text[:200]!r}")
    elif not urlsplit(text).netloc:
        raise BadLocation(f"must name a bucket, as in {scheme}://bucket/prefix; got {text[:200]!r}")
    return text


def is_bucket(text: str) -> bool:
    """Whether `text` is the URL of a bucket, and not a folder."""
    return _scheme(text) in BUCKET_SCHEMES


def folder_of(text: str) -> Path:
    """The folder that `text`, a path or a `file://` URL, names; the default one for an empty text.

    Raises `RuntimeError` if this user has no home folder.
    """
    if not text:
        return user_data() / DEFAULT_FOLDER
    if _scheme(text) == "file":
        parts = urlsplit(text)
        return Path(parts.netloc + unquote(parts.path))
    return Path(text)


def _scheme(text: str) -> str | None:
    match = SCHEME.match(text)
    return match.group(1).lower() if match else None
