"""Refuses to serve more than this machine without API keys, before anything is started."""

from pathlib import Path

from safelight.service.cli import UserError
from safelight.service.settings import Settings

HOW = (
    "make one with `safelight keys create NAME`, or serve everyone who reaches the port with "
    "SAFELIGHT_REQUIRE_API_KEYS=never (docs/keys.md)"
)


def check_keys(settings: Settings) -> Settings:
    """The settings with the place of the database, if callers need API keys; its tables are there afterwards.

    Raises `UserError` if there is no key yet and no admin key to make one with, or if keys cannot be read.
    """
    if not settings.requires_keys:
        return settings
    num_keys = 0
    if settings.api_keys_file:
        num_keys += _count_in_file(Path(settings.api_keys_file))
    if settings.uses_database:
        settings, num_in_database = _count_in_database(settings)
        num_keys += num_in_database
    can_make = settings.uses_database and bool(settings.admin_key.get_secret_value())
    if not num_keys and not can_make:
        raise UserError(f"refusing to serve on {settings.host} without API keys: {HOW}")
    return settings


def _count_in_file(path: Path) -> int:
    from safelight.service.keys.key_file import BadKeyFile, read_key_file

    try:
        return len(read_key_file(path))
    except BadKeyFile as error:
        raise UserError(str(error)) from None


def _count_in_database(settings: Settings) -> tuple[Settings, int]:
    """The settings with the place of the database, and the number of its keys that were not revoked."""
    from safelight.service.cli.keys.stores import LocalKeys
    from safelight.service.database.locations import find_database

    keys = LocalKeys(settings.database).list_all()
    location = find_database(settings.database.get_secret_value())
    if location.folder is not None:  # the service's processes may have another home folder
        settings = settings.updated(database=str(location.folder))
    return settings, sum(key["revoked"] is None for key in keys)
