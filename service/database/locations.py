"""Which database a setting names: a SQLite file in a folder, or PostgreSQL by its URL. No SQLAlchemy here."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from safelight.service.runtime.user_folders import user_data

DEFAULT_FOLDER = "safelight"  # in the user's folder for data
FILE_NAME = "safelight.sqlite3"
SCHEMES = ("postgresql", "postgres")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class BadDatabase(ValueError):
    """A text that names no database; the message says what is allowed, and repeats no password."""


@dataclass(frozen=True)
class DatabaseLocation:
    """Where a database is.

    Attributes:
        folder: Of the SQLite file; None for PostgreSQL.
        url: Of PostgreSQL, as libpq reads it; empty for SQLite.
    """

    folder: Path | None
    url: str = field(default="", repr=False)

    @property
    def file(self) -> Path | None:
        """The SQLite file."""
        return None if self.folder is None else self.folder / FILE_NAME

    def __str__(self) -> str:
        """What may be shown: without user and password."""
        if self.folder is not None:
            return str(self.folder / FILE_NAME)
        parts = urlsplit(self.url)
        return f"postgresql://{parts.hostname or 'localhost'}{parts.path}"


def find_database(text: str) -> DatabaseLocation:
    """The database that `text` names: the path of a folder, or a URL; an empty text is the user's own folder.

    Raises:
        BadDatabase: It is neither.
        RuntimeError: The text is empty and this user has no home folder.
    """
    if not text:
        return DatabaseLocation(user_data() / DEFAULT_FOLDER)
    scheme = _SCHEME.match(text)
    if scheme is None:
        if not Path(text).is_absolute():
            raise BadDatabase(
                "must be the absolute path of a folder, or a URL such as postgresql://host/name"
            )
        return DatabaseLocation(Path(text))
    if scheme[1].lower() not in SCHEMES:
        raise BadDatabase(f"must be a folder, or a URL that starts with postgresql://; got {scheme[1]}://")
    try:
        parts = urlsplit(text)
        has_name = bool(parts.path.strip("/")) and parts.port != 0
    except ValueError:  # no port, or no IPv6 address
        has_name = False
    if not has_name:
        raise BadDatabase("must name a database, as in postgresql://user@host/name")
    return DatabaseLocation(None, f"postgresql{text[scheme.end(1) :]}")
