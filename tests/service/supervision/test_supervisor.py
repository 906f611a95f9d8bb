"""The command and its processes under failures and signals, with a stand-in for Ray.

`tests/environments` does the same with Ray.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.live import free_port

PATIENCE = 120.0
ESSENTIAL = ("gcs_server", "raylet")
REPLICA = "ray::ServeReplica:safelight:Denoiser"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux only")


class Command:
    """The running command, and the processes below it."""

    def __init__(self, folder: Path, mode: str, names: tuple[str, ...], restarts: int):
        self.folder, self.port, self._num_names = folder, free_port(), len(names)
        (folder / "processes").write_text(" ".join(names))
        self.temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # a short path, for Ray's sockets
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.service.supervision.fake_command",
                mode,
                str(folder),
                str(self.port),
            ],
            env=os.environ
            | {
                "SAFELIGHT_SHUTDOWN_SECONDS": "0.5",
                "SAFELIGHT_RESTARTS": str(restarts),
                "TMPDIR": str(self.temporary),
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self.below: list[psutil.Process] = []

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, text: str) -> None:
        self.until(lambda: text in self.log)

    def wait_for_processes(self) -> None:
        """Until the driver and its processes run under their names."""
        self.until(lambda: len(self._find()) == 1 + self._num_names)
        self.below = self._find()

    def find(self, name: str) -> psutil.Process:
        return next(process for process in self.below if name in f"{process.name()} {process.cmdline()[0]}")

    def end(self) -> int:
        """The exit status; nothing is left of the command."""
        status = self.process.wait(PATIENCE)
        assert not [process for process in self.below if process.is_running()], self.log
        with socket.create_server(("127.0.0.1", self.port)):
            return status

    def close(self) -> None:
        self._log.close()
        for process in [*self._find(), *self.below]:
            if process.is_running():
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.temporary)

    def until(self, holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < give_up and self.process.poll() is None, self.log
            time.sleep(0.05)

    def _find(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [process for process in children if process.name() != "bash"]
        except psutil.NoSuchProcess:
            return []


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    commands: list[Command] = []

    def run(mode: str, *names: str, restarts: int = 0) -> Command:
        commands.append(Command(tmp_path, mode, names, restarts))
        return commands[-1]

    yield run
    for command in commands:
        command.close()


def logs_of(command: Command) -> Path:
    """The folder that the last line of the log names."""
    return Path(command.log.rsplit("(Ray's logs: ", 1)[1].split(")")[0])


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.long) for n in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_ends_a_service_in_order(start: Start, number: signal.Signals) -> None:
    command = start("ready", *ESSENTIAL, REPLICA)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    command.process.send_signal(number)
    assert command.end() == 0
    assert command.log.count("\n") == 1  # the announcement
    assert list(command.temporary.glob("*/ray_token")) == []


@pytest.mark.parametrize(
    "name", [pytest.param("gcs_server", marks=pytest.mark.long), "raylet", "fake_driver"]
)
def test_the_death_of_a_process_that_nothing_replaces_ends_the_command(start: Start, name: str) -> None:
    command = start("ready", *ESSENTIAL, REPLICA)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    if name == "fake_driver":
        victim = next(process for process in command.below if "fake_driver" in " ".join(process.cmdline()))
    else:
        victim = command.find(name)
    victim.kill()
    assert command.end() == 1
    reason = (
        "Ray's driver has ended by SIGKILL" if name == "fake_driver" else f"{name} (process {victim.pid})"
    )
    assert reason in command.log
    assert logs_of(command).parents[2].is_dir()  # they are kept


def test_a_service_that_was_lost_is_started_again_at_the_same_socket(start: Start) -> None:
    """A client that connects while nothing runs waits, and is answered."""
    command = start("ready", *ESSENTIAL, REPLICA, restarts=1)
    for number in (1, 2):
        command.until(lambda: command.log.count("Safelight serves tiny") == number)  # noqa: B023
        command.wait_for_processes()
        below = command.below
        command.find("raylet").kill()
        if number == 1:
            command.wait_for("starting again")
            with socket.create_connection(("127.0.0.1", command.port)) as client:
                client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.0 200")
            assert not [process for process in below if process.is_running()]
    assert command.end() == 1
    assert command.log.count("which Ray does not survive") == 2


def test_a_signal_while_the_service_starts_again_ends_it(start: Start) -> None:
    command = start("ready", *ESSENTIAL, restarts=9)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    command.find("raylet").kill()
    command.wait_for("starting again")
    command.process.terminate()
    assert command.end() == 0


def test_a_start_that_fails_after_a_loss_is_tried_again(start: Start) -> None:
    command = start("ready once", *ESSENTIAL, restarts=2)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    command.find("raylet").kill()
    assert command.end() == 1
    assert command.log.count("safelight serve: no such tensor\n") == 2


def test_a_replica_that_dies_is_waited_for_and_logged(start: Start) -> None:
    command = start("ready", *ESSENTIAL, REPLICA)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    (command.folder / "lost").touch()
    command.wait_for("not ready (no denoise)")
    victim = command.find(REPLICA)
    victim.kill()
    command.wait_for(f"ServeReplica:safelight:Denoiser (process {victim.pid}) has ended")
    (command.folder / "lost").unlink()
    command.wait_for("ready again after")
    command.process.terminate()
    assert command.end() == 0


@pytest.mark.parametrize(
    ("mode", "reason"),
    [("fails", "Denoiser cannot be started again: no weights"), ("lost", "the raylet does")],
)
def test_a_service_that_cannot_recover_ends_the_command(start: Start, mode: str, reason: str) -> None:
    command = start(mode, *ESSENTIAL)
    assert command.end() == 1
    assert reason in command.log


def test_a_service_that_does_not_stop_is_killed(start: Start) -> None:
    command = start("hung", *ESSENTIAL)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    command.process.terminate()
    assert command.end() == 1
    assert "stopped by force" in command.log


@pytest.mark.parametrize("mode", ["silent", pytest.param("hung", marks=pytest.mark.long)])
def test_a_second_signal_ends_it_at_once(start: Start, mode: str) -> None:
    command = start(mode, *ESSENTIAL)
    command.wait_for_processes()
    for process in command.below:
        process.suspend()
    os.kill(command.process.pid, signal.SIGSTOP)  # both signals are there when it goes on
    command.process.send_signal(signal.SIGINT)
    command.process.send_signal(signal.SIGTERM)
    os.kill(command.process.pid, signal.SIGCONT)
    assert command.end() in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_a_signal_ends_a_start_that_hangs(start: Start) -> None:
    command = start("silent", *ESSENTIAL)
    command.wait_for_processes()
    command.process.terminate()
    assert command.end() == 0
    assert command.log == ""


def test_a_start_that_fails_is_reported_in_one_line(start: Start) -> None:
    command = start("refuses", *ESSENTIAL)
    assert command.end() == 2
    assert command.log == "safelight serve: no such tensor\n"
    assert list(command.temporary.glob("*/ray_token")) == []


def test_a_driver_whose_supervisor_dies_ends_too(start: Start) -> None:
    """The real driver kills its processes; this one sees the end of its input."""
    command = start("ready", *ESSENTIAL)
    command.wait_for("Safelight serves tiny")
    command.wait_for_processes()
    command.process.kill()
    driver = [process for process in command.below if "fake_driver" in " ".join(process.cmdline())]
    _, alive = psutil.wait_procs(driver, timeout=PATIENCE)
    assert driver and alive == []
