"""Starts the service in a process of its own, watches it, and ends all its processes in any case."""

import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import BinaryIO, Self

from safelight.service.local import STOPPING, CannotServe, ProgressCallback
from safelight.service.runtime.addresses import Address, BoundAddress
from safelight.service.runtime.environment import BadEnvironment, ServiceEnvironment, make_environment
from safelight.service.runtime.readiness import ReadinessAnswer, ask_readiness
from safelight.service.runtime.shared_listener import NAME as LISTENER
from safelight.service.runtime.shared_listener import sharing
from safelight.service.settings import Settings
from safelight.service.supervision.driver import STOP, Event
from safelight.service.supervision.health import ServiceHealth
from safelight.service.supervision.processes import adopt_orphans, kill_all
from safelight.service.supervision.stop_request import StopRequest
from safelight.service.supervision.watch import ProcessWatch
from safelight.service.telemetry.logs import configure_logs, received_logs

logger = logging.getLogger(__name__)

# -P: Python would look for packages in the working directory first, which may hold others of these names.
DRIVER = (sys.executable, "-P", "-m", "safelight.service.supervision.driver")
START_SECONDS = 3600.0  # loading a large model from a slow disk takes long
POLL_SECONDS = 0.5
PROBE_SECONDS = 5.0  # between questions to a service that is ready
LOST_PROBE_SECONDS = 1.0
STOP_SECONDS = 6.0  # beyond `shutdown_seconds`, for stopping Ray; then all processes are killed
END_SECONDS = 9.0  # beyond `shutdown_seconds`, after which also a killed process is not waited for
KILL_SECONDS = 10.0  # without a signal
CALIBRATIONS = "calibrations"  # the folder of what denoisers have measured


class ServiceLost(Exception):
    """The service was ready and will not be again; the message says why."""


class Supervisor:
    """A service in a process of its own; when the block ends, all its processes have ended.

    Args:
        settings: The service's settings, with the host and the port of `at`.
        at: Where it listens.
        stop: The signals that stop it.

    Raises:
        CannotServe: The environment does not allow to start it.
    """

    def __init__(self, settings: Settings, at: BoundAddress, stop: StopRequest):
        self._settings = settings
        self._address = at.address
        self._listener = at.listener
        self._stop = stop
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._processes = ProcessWatch()
        self._is_drained = self._is_serving = False
        self._keeps_logs = False
        self._threads = ExitStack()

    def __enter__(self) -> Self:
        self._stop.is_deferred = True
        adopt_orphans()
        try:
            self._environment: ServiceEnvironment = make_environment(os.environ, self._address.reachable_host)
        except BadEnvironment as error:
            raise CannotServe(str(error)) from None
        folder = self._environment.folder
        log_socket = self._threads.enter_context(received_logs(folder))
        self._threads.enter_context(sharing(self._listener, folder / LISTENER))
        calibrations = folder / CALIBRATIONS
        calibrations.mkdir()
        self._settings = self._settings.updated(
            log_socket=self._settings.log_socket or log_socket,
            calibration_folder=self._settings.calibration_folder or str(calibrations),
        )
        configure_logs(self._settings, "supervisor")
        for note in self._environment.notes:
            logger.warning(note)
        try:
            self._driver = subprocess.Popen(
                DRIVER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | self._environment.variables,
                start_new_session=True,  # a terminal sends Ctrl-C to all processes of a session's foreground
            )
        except OSError as error:
            self._close()
            raise CannotServe(f"Ray's driver did not start: {error}") from None
        assert self._driver.stdin and self._driver.stdout
        self._reader = threading.Thread(
            target=_read_events, args=(self._driver.stdout, self._events), name="events", daemon=True
        )
        self._reader.start()
        self._tell(pickle.dumps(self._settings))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._is_serving and error is None:
                self._finish()
        finally:
            for process in kill_all(self._processes.titles, self._kill_seconds()):
                logger.error("process %d was killed and has not ended yet", process.pid)
            self._close()

    def wait_until_ready(self, report_progress: ProgressCallback) -> str | None:
        """The service's URL when it is ready; None if a signal came first. Raises `CannotServe`."""
        give_up = time.monotonic() + START_SECONDS
        is_started = False
        while not self._stop.is_made:
            event = self._next_event()
            if event and event.kind == "ready":
                self._is_serving = True
                return event.text
            if event and event.kind == "failed":
                raise CannotServe(event.text)
            if event and event.kind == "progress":
                report_progress(event.text)
            is_started = is_started or event is not None and event.kind == "started"
            end = self._processes.reason_to_end(self._driver, is_started)
            if end and not self._stop.is_made:  # a signal may have been for all processes
                raise CannotServe(self._with_logs(end))
            if time.monotonic() > give_up:
                raise CannotServe(self._with_logs(f"not ready after {START_SECONDS:g} seconds"))
        return None

    def watch(self) -> None:
        """Return when a signal comes. Raises `ServiceLost`."""
        probe = ReadinessProbe(self._address)
        probe.start()
        health = ServiceHealth(time.monotonic())
        while not self._stop.is_made:
            event = self._next_event()
            now = time.monotonic()
            if event and event.kind == "lost":
                raise ServiceLost(self._with_logs(event.text))
            if event and event.kind in ("beat", "failing"):
                health.beat(now, event.text)
            for line in self._processes.ends():
                logger.warning(line)
                probe.hurry()
            if line := health.observe(now, probe.answer):
                logger.warning(line)
            end = self._processes.reason_to_end(self._driver, True) or health.reason_to_end(now)
            if end and not self._stop.is_made:
                raise ServiceLost(self._with_logs(end))

    def _finish(self) -> None:
        """Let the images in flight finish, and Ray stop, as long as there is time.

        Raises:
            ServiceLost: The images were not finished, because the service did not answer.
        """
        assert self._stop.made_at is not None
        give_up = self._stop.made_at + self._settings.shutdown_seconds + STOP_SECONDS
        self._tell(STOP)
        while self._driver.poll() is None and time.monotonic() < give_up:
            event = self._next_event()
            self._is_drained = self._is_drained or event is not None and event.text == STOPPING
        self._reader.join(POLL_SECONDS)  # it ends with the driver
        while event := self._next_event(wait=False):
            self._is_drained = self._is_drained or event.text == STOPPING
        if not self._is_drained:
            raise ServiceLost(self._with_logs("stopped by force: the service did not answer"))

    def _kill_seconds(self) -> float:
        if self._stop.made_at is None:
            return KILL_SECONDS
        end = self._stop.made_at + self._settings.shutdown_seconds + END_SECONDS
        return max(0.0, end - time.monotonic())

    def _close(self) -> None:
        self._threads.close()
        if not self._keeps_logs:
            self._environment.remove()

    def _next_event(self, wait: bool = True) -> Event | None:
        with suppress(queue.Empty):
            return self._events.get(timeout=POLL_SECONDS) if wait else self._events.get_nowait()
        return None

    def _tell(self, message: bytes) -> None:
        assert self._driver.stdin
        with suppress(OSError):  # it has ended, which is seen elsewhere
            self._driver.stdin.write(message)
            self._driver.stdin.flush()

    def _with_logs(self, reason: str) -> str:
        self._keeps_logs = True
        return f"{reason} (Ray's logs: {self._environment.logs})"


class ReadinessProbe(threading.Thread):
    """Asks the service at intervals whether it is ready, on a thread, because an answer may take long."""

    def __init__(self, address: Address):
        super().__init__(name="readiness", daemon=True)
        self.answer = ReadinessAnswer(True, False, "ready")
        self._address = address
        self._is_urgent = threading.Event()

    def hurry(self) -> None:
        """Ask at once."""
        self._is_urgent.set()

    def run(self) -> None:
        while True:
            self._is_urgent.wait(PROBE_SECONDS if self.answer.is_ready else LOST_PROBE_SECONDS)
            self._is_urgent.clear()
            self.answer = ask_readiness(self._address)


def _read_events(stream: BinaryIO, events: "queue.SimpleQueue[Event]") -> None:
    for line in stream:
        with suppress(ValueError, TypeError):
            events.put(Event(**json.loads(line)))
