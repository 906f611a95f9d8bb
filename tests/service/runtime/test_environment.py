"""The environment that the service's processes get, made from one that lacks something."""

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from safelight.service import cli
from safelight.service.runtime import environment
from safelight.service.runtime.environment import (
    BadEnvironment,
    ServiceEnvironment,
    bound_spinning,
    bypass_proxies,
    make_environment,
    service_environment,
)


@pytest.fixture
def environments() -> Iterator[list[ServiceEnvironment]]:
    """Environments that are removed at the end of the test."""
    environments: list[ServiceEnvironment] = []
    yield environments
    for item in environments:
        item.remove()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1,fd00::7"),
        ({"no_proxy": "a.org, 127.0.0.1"}, "a.org,127.0.0.1,localhost,::1,fd00::7"),
        ({"NO_PROXY": "a.org", "no_proxy": "b.org"}, "b.org,a.org,localhost,127.0.0.1,::1,fd00::7"),
        ({"NO_PROXY": "a.org", "no_proxy": ""}, "a.org,localhost,127.0.0.1,::1,fd00::7"),
        ({"NO_PROXY": "*"}, "*"),
        ({"no_proxy": "a.org,*"}, "*"),
    ],
)
def test_this_machine_is_reached_without_a_proxy(environ: Mapping[str, str], expected: str) -> None:
    assert bypass_proxies(environ, "fd00::7") == {"no_proxy": expected, "NO_PROXY": expected}


@pytest.mark.parametrize("home", [None, "", "/no/such/home", "/proc"])
def test_a_home_that_cannot_be_written_is_replaced(
    home: str | None, environments: list[ServiceEnvironment]
) -> None:
    environments.append(make_environment({} if home is None else {"HOME": home}))
    folder = Path(environments[0].variables["HOME"])
    assert folder.is_dir() and folder.is_relative_to(environments[0].folder)


def test_a_home_that_can_be_written_stays(tmp_path: Path, environments: list[ServiceEnvironment]) -> None:
    environments.append(make_environment({"HOME": str(tmp_path)}))
    assert "HOME" not in environments[0].variables
    assert list(tmp_path.iterdir()) == []


def test_rays_token_is_a_file_that_only_this_user_reads(environments: list[ServiceEnvironment]) -> None:
    environments += [make_environment({}), make_environment({})]
    files = [Path(item.variables["RAY_AUTH_TOKEN_PATH"]) for item in environments]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert [stat.S_IMODE(file.parent.stat().st_mode) for file in files] == [0o700, 0o700]
    tokens = {file.read_text() for file in files}
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)


def test_ray_listens_on_the_loopback_unless_the_operator_says_otherwise(
    environments: list[ServiceEnvironment],
) -> None:
    environments += [make_environment({}), make_environment({environment.LOCAL_RAY: "1"})]
    assert environments[0].variables[environment.LOCAL_RAY] == "0"
    assert environment.LOCAL_RAY not in environments[1].variables


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_given_token_stays(name: str, environments: list[ServiceEnvironment]) -> None:
    environments.append(make_environment({name: "x"}))
    assert "RAY_AUTH_TOKEN_PATH" not in environments[0].variables


def test_a_user_without_a_name_gets_one(
    monkeypatch: pytest.MonkeyPatch, environments: list[ServiceEnvironment]
) -> None:
    environments.append(make_environment({}))
    assert "USER" not in environments[-1].variables

    def find_nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", find_nobody)
    environments.append(make_environment({}))
    assert environments[-1].variables["USER"] == f"uid-{os.getuid()}"
    environments.append(make_environment({"LOGNAME": "me"}))
    assert "USER" not in environments[-1].variables


def test_the_temporary_folder_is_used_if_its_path_is_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environments: list[ServiceEnvironment]
) -> None:
    monkeypatch.setattr(environment, "SOCKET_PATH_BYTES", 500)
    environments.append(make_environment({"TMPDIR": str(tmp_path)}))
    assert environments[0].folder.parent == tmp_path and not environments[0].notes
    assert environments[0].variables["RAY_TMPDIR"] == str(environments[0].folder)


@pytest.mark.skipif(not os.access("/tmp", os.W_OK), reason="/tmp is not writable")
@pytest.mark.parametrize(
    ("folder", "problem"),
    [("a" * 40, "has too long a path"), ("é" * 20, "has too long a path"), (None, "is not a folder")],
)
def test_another_temporary_folder_is_used_otherwise(
    folder: str | None, problem: str, tmp_path: Path, environments: list[ServiceEnvironment]
) -> None:
    path = tmp_path / (folder or "missing")
    if folder:
        path.mkdir()
    environments.append(make_environment({"TMPDIR": str(path)}))
    assert environments[0].folder.parent == Path("/tmp")
    assert problem in environments[0].notes[0] and str(path) in environments[0].notes[0]
    longest = f"{environments[0].folder}{environment.RAY_SOCKET}"
    assert len(os.fsencode(longest)) <= environment.SOCKET_PATH_BYTES


def test_without_any_temporary_folder_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TEMPORARY", ("/proc", "/no/such/folder"))
    with pytest.raises(BadEnvironment, match="/proc is not writable; /no/such/folder is not a folder"):
        make_environment({})


def test_the_environment_of_this_process_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "a.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with service_environment() as inside:
        assert os.environ["NO_PROXY"].startswith("a.org,localhost")
        assert inside.folder.is_dir()
    assert os.environ["no_proxy"] == "a.org" and "NO_PROXY" not in os.environ
    assert not inside.folder.exists()


def leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove an operator's choice; what is set instead is removed again at the end of the test."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "count"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_for_a_short_time_unless_the_operator_chose(
    variables: Mapping[str, str], count: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_open(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == count


def test_every_command_bounds_the_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_open(monkeypatch)
    assert cli.main(["solvers"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == environment.SPIN_COUNT
