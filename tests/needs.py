"""What tests need that the environment of development lacks, checked before they run: a pytest plugin.

A test whose need is not met is skipped with a sentence that says what to install. Continuous integration sets
`TESTS_IN_CI=1`: then Debian packages are installed and environments made, and such a skip is a failure
(tests/skips.py).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients import environment as clients
from tests.servers import postgres_binary, valkey_binary

SERVERS = {"prometheus", "postgresql", "redis-server"}  # packages that start a server of their own
IS_CI = os.environ.get("TESTS_IN_CI") == "1"
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Need:
    """What some tests need, and how it is had: Debian packages, or a target of make."""

    name: str
    packages: str
    is_met: Callable[[], bool]
    tests: tuple[str, ...] = ()  # beginnings of node ids, from `tests/` on
    fixtures: tuple[str, ...] = ()  # every test that uses one
    values: tuple[str, ...] = ()  # every test with one as the value of a parameter
    target: str = ""

    @property
    def reason(self) -> str:
        command = f"make {self.target}" if self.target else f"apt-get install {self.packages}"
        return f"{self.name} is missing: {command}"


def _has_chromium() -> bool:
    return shutil.which("chromium") is not None


def _has_compiler() -> bool:
    """Whether torch's inductor can compile: it calls $CXX or g++, and includes Python.h."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(os.environ.get("CXX", "g++")) is not None and headers.exists()


def _has_curl() -> bool:
    return shutil.which("curl") is not None


def _has_exiftool() -> bool:
    return shutil.which("exiftool") is not None


def _has_node() -> bool:
    return shutil.which("node") is not None and shutil.which("npm") is not None


def _has_postgres() -> bool:
    return postgres_binary("postgres") is not None and postgres_binary("initdb") is not None


def _has_prometheus() -> bool:
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


def _has_valkey() -> bool:
    return valkey_binary() is not None


INSTALLED_CLIENTS = ("clients/test_clients.py::test_an_installed_library",)
NEEDS = (
    Need(
        "a C++ compiler with Python's headers",
        "g++ python3-dev",
        _has_compiler,
        tests=(
            "models/packed/test_int8.py::",
            "pipeline/engine/test_int8_batch_invariance.py::",
            "service/test_quantization.py::",
        ),
    ),
    Need("Chromium", "chromium", _has_chromium, fixtures=("browser",)),
    Need(
        "curl",
        "curl",
        _has_curl,
        tests=(
            "e2e/test_service.py::test_curl",
            "page/test_code.py::test_the_copied_curl",
            "readme/test_live_commands.py::test_command[curl",
        ),
    ),
    Need(
        "ExifTool",
        "libimage-exiftool-perl",
        _has_exiftool,
        tests=("pipeline/engine/test_image_files.py::test_exiftool",),
    ),
    Need("PostgreSQL", "postgresql", _has_postgres, fixtures=("postgres",), values=("postgresql",)),
    Need("Prometheus with promtool", "prometheus", _has_prometheus, fixtures=("promtool", "scraped")),
    # Debian 13 has Valkey, earlier ones have the Redis that it comes from
    Need("Valkey or Redis", "redis-server", _has_valkey, fixtures=("valkey",), values=("valkey",)),
    Need("Node.js with npm", "nodejs npm", _has_node, tests=INSTALLED_CLIENTS),
    Need(  # after what it is made with
        "the environment of clients", "", clients.is_made, tests=INSTALLED_CLIENTS, target="clients"
    ),
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """In continuous integration, install what is missing; once, in the process that starts the others."""
    if not IS_CI or hasattr(session.config, "workerinput"):
        return
    packages = " ".join(need.packages for need in NEEDS if need.packages and not need.is_met()).split()
    if packages and shutil.which("apt-get") is not None and os.geteuid() == 0:
        _install(packages)
    if targets := [need.target for need in NEEDS if need.target and not need.is_met()]:
        _make(targets)


def pytest_report_header() -> list[str]:
    return [need.reason for need in NEEDS if not need.is_met()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for need in NEEDS:
        if not need.is_met():
            skip = pytest.mark.skip(reason=need.reason)
            for item in items:
                if _has_need(item, need):
                    item.add_marker(skip)


def _has_need(item: pytest.Item, need: Need) -> bool:
    node = f"{item.path.relative_to(TESTS).as_posix()}::{item.nodeid.partition('::')[2]}"
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return (
        node.startswith(need.tests)
        or not set(need.fixtures).isdisjoint(getattr(item, "fixturenames", ()))
        or any(value in need.values for value in values if isinstance(value, str))
    )


def _install(packages: list[str]) -> None:
    """Install Debian packages; what cannot be installed is reported as missing by the tests."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "-y", "--no-install-recommends", *packages],
    ):
        subprocess.run(command, env=environment, capture_output=True, check=False)
    for package in SERVERS.intersection(packages) if shutil.which("systemctl") else ():
        subprocess.run(["systemctl", "stop", package], capture_output=True, check=False)


def _make(targets: list[str]) -> None:
    """Make targets with the environment that runs the tests, which is not touched itself."""
    options = [f"VENV={sys.prefix}", f"--old-file={sys.prefix}/.installed-dev"]
    done = subprocess.run(["make", *targets, *options], cwd=TESTS.parent, capture_output=True, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
