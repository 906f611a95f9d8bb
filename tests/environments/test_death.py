"""What `safelight serve` does when a process of Ray dies, hangs, or is stopped at any moment of the start."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.environments.serve_command import ServeCommand, serve_command

MOMENTS = [0.3, 1.0, 2.0, 4.0, 6.0, 9.0, 13.0, 18.0, 24.0, 30.0]  # seconds after the start
DRIVER = "safelight.service.supervision.driver"
# By Ray or Serve.
REPLACED = (
    "ray::ServeReplica:safelight:Colocated",
    "ray::ServeReplica:safelight:Gateway",
    "ray::ServeReplica:safelight:Ledger",
    "ray::ServeController",
)
UNNEEDED = ("/monitor.py", "/log_monitor.py")


def kill(command: ServeCommand, title: str) -> psutil.Process:
    victim = command.find(title)
    victim.kill()
    return victim


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_what_heals_is_waited_for(tmp_path: Path) -> None:
    with serve_command(tmp_path) as command:
        command.wait_until_ready()
        for title in REPLACED:
            victim = kill(command, title)
            name = title.removeprefix("ray::")
            command.until(lambda: f"{name} (process {victim.pid}) has ended" in command.log)  # noqa: B023
            command.until(command.is_ready)
            command.draw()
        for title in UNNEEDED:
            kill(command, title)
        command.draw()
        assert command.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("title", ["gcs_server", DRIVER, "ray::DashboardAgent", "ray::RuntimeEnvAgent"])
def test_what_does_not_heal_ends_the_command(tmp_path: Path, title: str) -> None:
    with serve_command(tmp_path, env=os.environ | {"SAFELIGHT_RESTARTS": "0"}) as command:
        command.wait_until_ready()
        kill(command, title)
        assert command.end() == 1
        assert "has ended" in command.log


@pytest.mark.long
def test_a_service_that_does_not_heal_is_started_again(tmp_path: Path) -> None:
    with serve_command(tmp_path) as command:
        command.wait_until_ready()
        for number, title in enumerate(("raylet/raylet", "gcs_server", DRIVER)):
            kill(command, title)
            command.until(lambda: command.log.count("Safelight serves") == 2 + number)  # noqa: B023
            command.draw()
        assert command.stop() == 0


@pytest.mark.long
def test_the_death_of_the_command_itself_leaves_no_process(tmp_path: Path) -> None:
    with serve_command(tmp_path) as command:
        command.wait_until_ready()
        below = [process for process in command.processes() if process.pid != command.process.pid]
        command.process.kill()
        command.process.wait()
        _, alive = psutil.wait_procs(below, timeout=60.0)
        assert alive == []


@pytest.mark.long
@pytest.mark.parametrize("title", [DRIVER, "raylet/raylet", "gcs_server", "ray::ServeController"])
def test_a_signal_ends_a_service_of_which_a_part_hangs(tmp_path: Path, title: str) -> None:
    with serve_command(tmp_path, env=os.environ | {"SAFELIGHT_SHUTDOWN_SECONDS": "3"}) as command:
        command.wait_until_ready()
        command.find(title).suspend()
        command.process.terminate()
        assert command.end() in (0, 1)


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=() if m == 6.0 else pytest.mark.long) for m in MOMENTS]
)
def test_a_signal_ends_the_start_at_any_moment(tmp_path: Path, moment: float) -> None:
    with serve_command(tmp_path) as command:
        time.sleep(moment)  # no event: any moment
        command.process.terminate()
        assert command.end() in (0, -signal.SIGTERM)  # before Python has started, the kernel ends it
