"""What the service's processes need of the environment that they are started in, which may lack it.

Ray writes to the home folder, names Unix sockets after the temporary folder, and reads proxies; a container
may have no home folder, no name for its user, one writable folder, or a long path to it.
"""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")
SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
# What Ray appends to its temporary folder: the longest name of a session, and of a socket.
RAY_SOCKET = "/ray/session_2026-11-30_00-00-00_000000_4194304/sockets/plasma_store.1"
PREFIX = "safelight-"
SPIN_COUNT = "2000"  # measured: docs/performance.md, "Waiting threads"
# Ray's switch for machines that are in no cluster, whose default depends on the system: with 0, Ray takes the
# loopback for the address of the machine, and its processes listen there instead of on all interfaces.
LOCAL_RAY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


class BadEnvironment(Exception):
    """The service cannot run in this environment; the message says what it lacks."""


@dataclass(frozen=True)
class ServiceEnvironment:
    """Environment variables for the service's processes, and the folder in which they keep their files.

    Attributes:
        folder: Ray's session, with its logs, and its token. Only this user can read it.
        variables: What differs from the environment of this process.
        notes: Remarks for the operator.
    """

    folder: Path
    variables: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def logs(self) -> Path:
        """Where the logs of Ray and of the service's processes lie."""
        return self.folder / "ray" / "session_latest" / "logs"

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def make_environment(environ: Mapping[str, str], *hosts: str) -> ServiceEnvironment:
    """An environment in which Ray starts, made from `environ`; `hosts` are reached without a proxy.

    Raises:
        BadEnvironment: No temporary folder can be used.
    """
    folder, notes = _make_folder(environ)
    token = folder / "ray_token"
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    variables = {
        "RAY_TMPDIR": str(folder),
        **({} if LOCAL_RAY in environ else {LOCAL_RAY: "0"}),
        **bypass_proxies(environ, *hosts),
    }
    if not ("RAY_AUTH_TOKEN" in environ or "RAY_AUTH_TOKEN_PATH" in environ):
        variables["RAY_AUTH_TOKEN_PATH"] = str(token)
    if not _is_writable(environ.get("HOME", "")):
        home = folder / "home"
        home.mkdir()
        variables["HOME"] = str(home)
    if not _has_user_name(environ):
        variables["USER"] = f"uid-{os.getuid()}"
    return ServiceEnvironment(folder, variables, notes)


@contextmanager
def service_environment(*hosts: str) -> Iterator[ServiceEnvironment]:
    """Make such an environment, set its variables in this process, and restore and remove all at the end."""
    environment = make_environment(os.environ, *hosts)
    previous = {name: os.environ.get(name) for name in environment.variables}
    os.environ.update(environment.variables)
    try:
        yield environment
    finally:
        environment.remove()
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def bypass_proxies(environ: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """The variables that keep requests to this machine, and to `hosts`, from a proxy that `environ` names.

    What they exclude already stays excluded. Both spellings get the same value, because some libraries read
    only one of them.
    """
    values = [environ[name] for name in NO_PROXY if environ.get(name)]
    entries = [entry.strip() for value in values for entry in value.split(",") if entry.strip()]
    if "*" in entries:
        return dict.fromkeys(NO_PROXY, "*")
    return dict.fromkeys(NO_PROXY, ",".join(dict.fromkeys([*entries, *LOOPBACK, *hosts])))


def keep_loopback_direct() -> None:
    """Let no request of this process, or of processes that it starts, to this machine go to a proxy."""
    os.environ.update(bypass_proxies(os.environ))


def bound_spinning() -> None:
    """Let threads of this process, and of processes that it starts, sleep soon when they wait for another.

    By default a thread of GNU's OpenMP spins for milliseconds. If another process has the core of the thread
    that it waits for, it spins until the scheduler exchanges them, in each of the thousands of barriers of an
    image. A few microseconds are enough where the cores are free. OpenMP reads the variable when torch is
    imported; an operator's choice stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def _make_folder(environ: Mapping[str, str]) -> tuple[Path, tuple[str, ...]]:
    """A new folder in the first temporary folder that is writable and has a short path, and remarks."""
    preferred = [environ[name] for name in ("RAY_TMPDIR", "TMPDIR") if environ.get(name)]
    refused = []
    for parent in dict.fromkeys([*preferred, *TEMPORARY]):
        if problem := _problem_of(parent):
            refused.append(f"{parent} {problem}")
            continue
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.path.abspath(parent)))
        notes = (f"temporary files are in {folder}: {'; '.join(refused)}",) if refused else ()
        return folder, notes
    raise BadEnvironment(f"no temporary folder can be used: {'; '.join(refused)}; set TMPDIR to another")


def _problem_of(parent: str) -> str:
    """Why no folder can be made in `parent`; empty if one can."""
    if not os.path.isdir(parent):
        return "is not a folder"
    path = os.fsencode(f"{os.path.abspath(parent)}/{PREFIX}12345678{RAY_SOCKET}")
    if len(path) > SOCKET_PATH_BYTES:
        return "has too long a path for the sockets of Ray"
    return "" if _is_writable(parent) else "is not writable"


def _is_writable(folder: str) -> bool:
    """Found out by writing: permissions say too little of a file system that is read-only or no disk."""
    if not folder:
        return False
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _has_user_name(environ: Mapping[str, str]) -> bool:
    """Whether Python finds a name for this user, which libraries put into the names of their caches."""
    if any(environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return True
    import pwd

    try:
        pwd.getpwuid(os.getuid())
        return True
    except KeyError:
        return False
