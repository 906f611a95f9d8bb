"""The ledger in the database, where the settings ask for one. Its libraries are imported here, and late."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from safelight.service.database.locations import find_database
from safelight.service.settings import Settings

if TYPE_CHECKING:
    from safelight.service.usage.stored_ledger import StoredLedger

logger = logging.getLogger(__name__)

FOLDER_MODE = 0o700


def open_stored_ledger(settings: Settings) -> StoredLedger | None:
    """The ledger, which reads its accounts when it is first used; None: they are in memory.

    Starts the migrations of the database, of which the process with the ledger is the one owner.
    """
    is_kept = settings.keeps_accounts and _is_usable(settings)
    if not (is_kept or settings.uses_database):
        return None
    from safelight.service.database.connection import Database
    from safelight.service.database.migrate import start_migrations

    location = find_database(settings.database.get_secret_value())
    migrations = start_migrations(location)
    if not is_kept:
        return None
    from safelight.service.usage.storage import LedgerStorage
    from safelight.service.usage.stored_ledger import StoredLedger

    return StoredLedger(settings, LedgerStorage(Database(location), settings.service_name), migrations)


def _is_usable(settings: Settings) -> bool:
    """Whether the user's folder for data can be written, if it is used only because nobody said otherwise."""
    if settings.database.get_secret_value() or settings.uses_database or settings.keep_accounts == "always":
        return True
    try:
        folder = find_database("").folder
        assert folder is not None
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        is_usable, reason = os.access(folder, os.W_OK | os.X_OK), f"{folder} cannot be written"
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
        is_usable, reason = False, str(error)
    if not is_usable:
        logger.warning("the accounts are in memory and end with the service: %s", reason)
    return is_usable
