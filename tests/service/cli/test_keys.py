"""`safelight keys` on a database, through a service and for a file; and `safelight serve` without keys."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.service import cli
from safelight.service.cli import UserError
from safelight.service.cli.keys.check import check_keys
from safelight.service.cli.serve import _announcement
from safelight.service.http.gateway import build_gateway
from safelight.service.keys.key_file import read_key_file
from safelight.service.keys.secrets import hash_secret, make_secret
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.live import free_port
from tests.service.http.keyed import ADMIN_KEY, make_keys, make_settings
from tests.service.http_server import served

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFELIGHT_DATABASE", str(tmp_path))
    return tmp_path


def run(capsys: Capture, *argv: str) -> tuple[str, str]:
    """What a command that succeeds writes to stdout and stderr."""
    assert cli.main(["keys", *argv]) == 0
    out, err = capsys.readouterr()
    return out.strip(), err


def refusal(capsys: Capture, *argv: str) -> str:
    code: str | int | None
    try:
        code = cli.main(["keys", *argv])
    except SystemExit as call:
        code = call.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    return str(err).strip()


@pytest.fixture(params=["database", "service"])
def where(
    request: pytest.FixtureRequest, database: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """The flags that say where keys are."""
    if request.param == "database":
        yield []
        return
    make_keys(database)
    monkeypatch.setenv("SAFELIGHT_ADMIN_KEY", ADMIN_KEY)
    with served(build_gateway(FakeBackend(), MODEL, make_settings(database))) as url:
        yield ["--url", url]


def test_a_key_is_made_listed_rotated_and_revoked(where: list[str], capsys: Capture) -> None:
    limits = ("--images-per-day", "5", "--models", "a, b", "--expires-days", "30")
    secret, err = run(capsys, "create", "bob", *limits, *where)
    assert re.fullmatch(r"sk-[\w-]{43}", secret) and secret not in err and "shown once" in err
    listed = json.loads(run(capsys, "list", "--json", *where)[0])["data"]
    (key,) = (key for key in listed if key["name"] == "bob")
    assert (key["images_per_day"], key["models"], key["prefixes"]) == (5, ["a", "b"], [secret[:11]])
    assert 29.9 < (key["expires"] - key["created"]) / 86400 < 30.1
    table = run(capsys, "list", *where)[0]
    (row,) = (line for line in table.splitlines() if line.startswith("bob "))
    assert secret[:11] in row and "images_per_day=5" in row and "in use" in row
    assert key["id"] in run(capsys, "show", "bob", *where)[0]
    second = run(capsys, "rotate", key["id"], "--overlap-hours", "1", *where)[0]
    assert re.fullmatch(r"sk-[\w-]{43}", second) and second != secret
    shown = json.loads(run(capsys, "show", "bob", "--json", *where)[0])
    assert shown["prefixes"] == [secret[:11], second[:11]]
    assert "revoked" in run(capsys, "revoke", "bob", *where)[0]
    assert "revoked" in next(
        line for line in run(capsys, "list", *where)[0].splitlines() if line.startswith("bob ")
    )
    everything = "".join(run(capsys, "list", *where)) + run(capsys, "list", "--json", *where)[0]
    assert secret not in everything and second not in everything


def test_mistakes_are_one_sentence(where: list[str], capsys: Capture) -> None:
    run(capsys, "create", "bob", *where)
    assert "the name 'bob' is in use" in refusal(capsys, "create", "bob", *where)
    assert "there is no key 'nobody'" in refusal(capsys, "show", "nobody", *where)
    assert "there is no key 'no body?'" in refusal(capsys, "revoke", "no body?", *where)
    assert "name must be 1 to 64" in refusal(capsys, "create", "", *where)
    negative = ("create", "x", "--images-per-day", "-1", *where)
    assert "images_per_day must be at least 0" in refusal(capsys, *negative)
    assert "overlap_seconds" in refusal(capsys, "rotate", "bob", "--overlap-hours", "-1", *where)


def test_a_service_that_cannot_be_asked_is_said(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert "--url needs the service's admin key in SAFELIGHT_ADMIN_KEY" in refusal(
        capsys, "list", "--url", url
    )
    monkeypatch.setenv("SAFELIGHT_ADMIN_KEY", "wrong")
    assert f"no answer from {url}" in refusal(capsys, "list", "--url", url)
    assert "--url: " in refusal(capsys, "list", "--url", "http://a:b")
    with served(build_gateway(FakeBackend(), MODEL, Settings())) as open_url:
        assert "no such route" in refusal(capsys, "list", "--url", open_url)


def test_a_database_that_is_away_is_said_without_its_password(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://user:swordfish@127.0.0.1:{free_port()}/name"
    monkeypatch.setenv("SAFELIGHT_DATABASE", url)
    line = refusal(capsys, "list")
    assert "postgresql://127.0.0.1/name" in line and "swordfish" not in line


def test_an_entry_for_a_file_has_no_secret(capsys: Capture, tmp_path: Path) -> None:
    out, err = run(capsys, "hash", "alice", "--images-per-day", "7")
    secret = err.split()[-1]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [json.loads(out)]}))
    (key,) = read_key_file(tmp_path / "keys.json")
    assert key.secrets[0].digest == hash_secret(secret) and secret not in out
    assert (key.spec.name, key.spec.limits.images_per_day) == ("alice", 7)


def test_a_secret_on_stdin_is_hashed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = make_secret()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{secret}\n"))
    out, err = run(capsys, "hash", "alice", "--stdin")
    assert json.loads(out)["secrets"][0]["sha256"] == hash_secret(secret).hex() and err == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO("password1\n"))
    line = refusal(capsys, "hash", "alice", "--stdin")
    assert "has not the form of one" in line and "password1" not in line


def test_no_flag_takes_a_secret() -> None:
    parser: Any = cli.make_parser(["keys"])
    (commands,) = parser._subparsers._group_actions
    (actions,) = commands.choices["keys"]._subparsers._group_actions
    flags = {flag for action in actions.choices.values() for flag in action._option_string_actions}
    assert {flag for flag in flags if "key" in flag or "secret" in flag or "token" in flag} == set()


ELSEWHERE = {"host": "0.0.0.0"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5"])
def test_serving_elsewhere_without_keys_is_refused_with_how(database: Path, host: str) -> None:
    with pytest.raises(UserError) as refusal:
        check_keys(Settings(host=host))
    assert str(refusal.value) == (
        f"refusing to serve on {host} without API keys: make one with `safelight keys create NAME`, or serve "
        "everyone who reaches the port with SAFELIGHT_REQUIRE_API_KEYS=never (docs/keys.md)"
    )


def test_the_command_refuses_before_it_starts_anything(
    database: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safelight.service.cli.serve._serve", lambda *_: pytest.fail("it was started"))
    port = str(free_port())
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", port]) == 2
    assert "refusing to serve on 0.0.0.0 without API keys" in capsys.readouterr().err
    run(capsys, "create", "alice")
    started: list[Settings] = []

    def start(settings: Settings, *_: object) -> int:
        started.append(settings)
        return 0

    monkeypatch.setattr("safelight.service.cli.serve._serve", start)
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", port]) == 0
    assert started[0].requires_keys and started[0].database.get_secret_value() == str(database)


def test_with_a_key_or_a_way_to_make_one_it_is_served(database: Path, capsys: Capture) -> None:
    assert check_keys(Settings(**ELSEWHERE, require_api_keys="never")) == Settings(
        **ELSEWHERE, require_api_keys="never"
    )
    assert check_keys(Settings()) == Settings()
    with_admin = Settings(**ELSEWHERE, admin_key=ADMIN_KEY)
    assert check_keys(with_admin).database.get_secret_value() == str(database)
    run(capsys, "create", "alice")
    assert check_keys(Settings(**ELSEWHERE)).requires_keys
    run(capsys, "revoke", "alice")
    with pytest.raises(UserError, match="without API keys"):
        check_keys(Settings(**ELSEWHERE))


def test_a_file_of_keys_is_enough_and_a_bad_one_is_refused(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    with pytest.raises(UserError, match="without API keys"):
        check_keys(Settings(api_keys_file=str(file)))
    file.write_text(json.dumps({"keys": [json.loads(run(capsys, "hash", "alice")[0])]}))
    settings = Settings(**ELSEWHERE, api_keys_file=str(file))
    assert check_keys(settings) == settings and not settings.uses_database
    file.write_text("{")
    with pytest.raises(UserError, match="is not JSON of the form"):
        check_keys(settings)
    assert not (tmp_path / "safelight.sqlite3").exists()


def test_without_keys_no_library_of_theirs_is_imported() -> None:
    """In a process of its own: a gateway without keys starts as quickly as before."""
    code = (
        "import sys\n"
        "from safelight.service.http import gateway\n"
        "from safelight.service.http.gateway_parts import make_access\n"
        "from safelight.service.settings import Settings\n"
        "assert make_access(Settings()) is None\n"
        "heavy = {'sqlalchemy', 'alembic', 'limits', 'redis', 'aiosqlite', 'psycopg', 'torch'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_to_try_has_a_key_where_one_is_needed() -> None:
    assert "SAFELIGHT_KEY" not in _announcement("http://127.0.0.1:8000", [MODEL], False)
    line = _announcement("http://127.0.0.1:8000", [MODEL], True)
    assert """/v1/images/generations -H "authorization: Bearer $SAFELIGHT_KEY" -H 'content-type""" in line
