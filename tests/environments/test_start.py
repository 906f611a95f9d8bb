"""`safelight serve` starts, draws and stops wherever people start it."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.environments.namespaces import NAMELESS_USER, READ_ONLY_ROOT, in_mounts, require
from tests.environments.recording_proxy import recording_proxy
from tests.environments.serve_command import PATIENCE, SERVE, ServeCommand, serve_command
from tests.live import free_port

CLEAN = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
OF_KUBERNETES = {
    "SAFELIGHT_PORT": "tcp://10.43.1.39:8000",
    "SAFELIGHT_SERVICE_HOST": "10.43.1.39",
    "SAFELIGHT_PORT_8000_TCP": "tcp://10.43.1.39:8000",
    "SAFELIGHT_MODEL": "",
}
has_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    """A temporary folder whose path is too long for a Unix socket in it."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    return folder


@has_ipv6
def test_many_hostile_things_at_once(tmp_path: Path, long_folder: Path) -> None:
    """A proxy, Kubernetes' variables, a long TMPDIR, no HOME and IPv6; then the raylet dies."""
    env = {name: value for name, value in CLEAN.items() if name != "HOME"} | OF_KUBERNETES
    with recording_proxy() as proxy:
        env |= proxy.variables | {"TMPDIR": str(long_folder), "SAFELIGHT_RESTARTS": "0"}
        with serve_command(tmp_path, "--host", "::1", env=env) as command:
            command.wait_until_ready()
            assert command.url.startswith("http://[::1]:")
            command.draw()
            assert "SAFELIGHT_PORT, SAFELIGHT_PORT_8000_TCP, SAFELIGHT_SERVICE_HOST" in command.log
            assert "too long a path" in command.log
            raylet = command.find("raylet/raylet")
            raylet.kill()
            assert command.end() == 1
            assert f"Ray's raylet (process {raylet.pid}) has ended" in command.log
        assert proxy.requests == []


def test_a_port_in_use_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run([*SERVE, "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert f"cannot listen on port {port} of 127.0.0.1: Address already in use" in line


def check_service(command: ServeCommand) -> None:
    """It draws, and stops in order at a signal."""
    command.wait_until_ready()
    command.draw()
    assert command.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("home", [None, "/proc"])
def test_no_home(tmp_path: Path, home: str | None) -> None:
    env = {name: value for name, value in CLEAN.items() if name != "HOME"}
    with serve_command(tmp_path, env=env | ({"HOME": home} if home else {})) as command:
        check_service(command)


@pytest.mark.long
def test_a_user_without_a_name(tmp_path: Path) -> None:
    require(*NAMELESS_USER)
    with serve_command(tmp_path, env=CLEAN | {"HOME": "/proc"}, prefix=NAMELESS_USER) as command:
        check_service(command)


@pytest.mark.long
def test_a_read_only_root_with_little_shared_memory(tmp_path: Path) -> None:
    prefix = in_mounts(READ_ONLY_ROOT)
    require(*prefix)
    with serve_command(tmp_path, env=CLEAN | {"TMPDIR": "/mnt"}, prefix=prefix) as command:
        check_service(command)
        assert "/dev/shm has 64 MiB free" in command.log


@pytest.mark.long
def test_ray_folders_of_another_user(tmp_path: Path) -> None:
    """/tmp/ray is a folder in which this user can write nothing; nor can he in ~/.ray."""
    prefix = in_mounts(("mount --make-rprivate /", "mkdir -p /tmp/ray", "mount --bind /proc /tmp/ray"))
    require(*prefix)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".ray").symlink_to("/proc")
    with serve_command(tmp_path, env=CLEAN | {"HOME": str(home)}, prefix=prefix) as command:
        check_service(command)


@pytest.mark.long
@has_ipv6
@pytest.mark.parametrize("host", ["::", "localhost"])
def test_hosts(tmp_path: Path, host: str) -> None:
    env = CLEAN | {"SAFELIGHT_REQUIRE_API_KEYS": "never"}  # with `::` others reach it
    with serve_command(tmp_path, "--host", host, env=env) as command:
        command.wait_until_ready()
        if host == "::":  # IPv4 too
            port = httpx2.URL(command.url).port
            assert httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
        check_service(command)


@pytest.mark.long
def test_a_proxy_is_asked_nothing_by_split_stages(tmp_path: Path) -> None:
    with recording_proxy() as proxy:
        with serve_command(tmp_path, "--stages", "split", env=CLEAN | proxy.variables) as command:
            check_service(command)
        assert proxy.requests == []


@pytest.mark.long
def test_three_services_at_once(tmp_path: Path) -> None:
    with ExitStack() as stack:
        commands = [stack.enter_context(serve_command(tmp_path, env=CLEAN)) for _ in range(3)]
        for command in commands:
            command.wait_until_ready()
        assert len({command.url for command in commands}) == 3
        for command in commands:
            command.draw()
        for command in commands:  # the others go on
            assert command.is_ready() and command.stop() == 0


@pytest.mark.long
def test_of_two_services_on_one_port_one_is_refused(tmp_path: Path) -> None:
    options = ("--port", str(free_port()))
    with (
        serve_command(tmp_path, *options, env=CLEAN) as first,
        serve_command(tmp_path, *options, env=CLEAN) as second,
    ):
        wait_for_the_end_of_one(first, second)
        winner, loser = (first, second) if first.process.poll() is None else (second, first)
        assert loser.end() == 2
        assert "Address already in use" in loser.log
        check_service(winner)


def wait_for_the_end_of_one(*commands: ServeCommand) -> None:
    give_up = time.monotonic() + PATIENCE
    while all(command.process.poll() is None for command in commands):
        assert time.monotonic() < give_up
        time.sleep(0.2)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.long
def test_an_orderly_end_leaves_no_file(tmp_path: Path, short_folder: Path) -> None:
    with serve_command(tmp_path, env=CLEAN | {"TMPDIR": str(short_folder)}) as command:
        command.wait_until_ready()
        assert command.stop(signal.SIGINT) == 0
    assert list(short_folder.glob("*/ray_token")) == []
