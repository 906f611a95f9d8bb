"""Watches the processes of Ray: which must live, and which Ray starts again."""

import math
import signal
import subprocess
import time

import psutil

from safelight.service.supervision.processes import descendants, is_alive, reap, title_of

SCAN_SECONDS = 3.0
# Nothing starts these again.
ESSENTIAL = ("gcs_server", "raylet")
# Serve starts these again.
REPLACEABLE = ("ray::ServeController", "ray::ProxyActor", "ray::ServeReplica")


class ProcessWatch:
    """Knows the processes below this one, which it looks for at intervals."""

    def __init__(self) -> None:
        self.titles: dict[psutil.Process, str] = {}
        self._essential: dict[str, psutil.Process | None] = {}
        self._scanned_at = -math.inf
        self._ends: list[str] = []

    def reason_to_end(self, driver: "subprocess.Popen[bytes]", is_started: bool) -> str | None:
        """Why the service cannot go on: a process that it cannot do without has ended; None if none has.

        Until Ray `is_started`, it may end and start its processes itself.
        """
        if is_started and not self._essential:
            self._scan(driver.pid)
            self._essential = {title: self._find(title) for title in ESSENTIAL}
        elif time.monotonic() > self._scanned_at + SCAN_SECONDS:
            self._scan(driver.pid)
        if (status := driver.poll()) is not None:
            reason = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
            return f"the process of Ray's driver has ended {reason}"
        for title, process in self._essential.items():
            if process is None or not is_alive(process):
                name = f"{title} (process {process.pid})" if process else title
                return f"Ray's {name} has ended, which Ray does not survive"
        return None

    def ends(self) -> list[str]:
        """A line for each process that has ended and that Serve starts again, since the last call."""
        lines, self._ends = self._ends, []
        return lines

    def _find(self, title: str) -> psutil.Process | None:
        return next((process for process, name in self.titles.items() if name == title), None)

    def _scan(self, driver_id: int) -> None:
        self._scanned_at = time.monotonic()
        current = descendants()
        for process in current:
            # Ray gives a worker its title when it gets its task.
            if not self.titles.get(process, "").startswith(REPLACEABLE):
                self.titles[process] = title_of(process)
        for process in self.titles.keys() - set(current):
            title = self.titles.pop(process)
            if title.startswith(REPLACEABLE):
                self._ends.append(f"{title.removeprefix('ray::')} (process {process.pid}) has ended")
        reap(keep=driver_id)
