"""Whether the accounts are in the database, and in which."""

from pathlib import Path
from typing import Any

import pytest

from safelight.service.database import migrate
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings
from safelight.service.usage.open_ledger import open_stored_ledger
from tests.service.usage.test_ledger import gateway_report, record

PUBLIC = {"host": "0.0.0.0"}


@pytest.mark.parametrize(
    ("settings", "is_kept"),
    [
        ({}, True),
        ({"host": "::1"}, True),
        ({"port": 0}, False),  # another service every time
        ({"port": 0, "database": "/d"}, True),
        ({"require_api_keys": "always", "port": 0}, True),
        (PUBLIC, True),  # with keys, which are in the database
        (PUBLIC | {"require_api_keys": "never"}, False),
        (PUBLIC | {"require_api_keys": "never", "database": "postgresql://h/d"}, True),
        (PUBLIC | {"api_keys_file": __file__}, False),
        (PUBLIC | {"require_api_keys": "never", "keep_accounts": "always"}, True),
        ({"keep_accounts": "never", "database": "/d"}, False),
    ],
)
def test_accounts_are_kept_where_they_will_be_found(settings: dict[str, Any], is_kept: bool) -> None:
    assert Settings(**settings).keeps_accounts == is_kept


def test_a_service_is_known_by_its_name_or_its_port() -> None:
    assert Settings().service_name == "8000"
    assert Settings(port=9, accounts_name="shop-1").service_name == "shop-1"
    for name in ("a b", "x" * 65, "ä", "a'"):
        with pytest.raises(BadSetting, match="accounts_name must be 1 to 64"):
            Settings(accounts_name=name)


async def test_accounts_are_kept_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's folder for data, by a ledger that waits for its tables to be made."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for number in range(2):
        ledger = open_stored_ledger(Settings())
        assert ledger is not None
        await ledger.receive(gateway_report(0, record(str(number)), source=str(number)))
        report = await ledger.report(None, 0)
        ledger.stop()
        assert report.images == number + 1
        assert report.storage.database == str(tmp_path / "safelight" / "safelight.sqlite3")


@pytest.mark.parametrize(
    ("settings", "is_memory"), [({}, True), ({"keep_accounts": "always"}, False), ({"port": 0}, True)]
)
def test_a_folder_that_nobody_asked_for_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_memory: bool
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "folder"))
    monkeypatch.setattr(migrate, "start_migrations", lambda _: None)  # it would try until it succeeds
    ledger = open_stored_ledger(Settings(**settings))
    assert (ledger is None) == is_memory
