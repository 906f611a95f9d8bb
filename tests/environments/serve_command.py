"""Runs the real `safelight serve` in an environment that a test makes, and finds all that it has started."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

PATIENCE = 300.0  # seconds; the machine may be doing something else
SERVE = (sys.executable, "-m", "safelight.service.cli", "serve", "--model", "tiny", "--stages", "colocated")
SPARE = {"SAFELIGHT_SPARE_WORKERS": "0"}  # they take seconds
MARK = "TEST_RUN"  # of the environment of all processes of one run
IMAGE = {"prompt": "a red apple", "num_inference_steps": 2, "seed": 1}


class ServeCommand:
    """One run of the command; `process` leads a session of its own."""

    def __init__(self, folder: Path, *options: str, env: Mapping[str, str], prefix: tuple[str, ...] = ()):
        self._mark = uuid.uuid4().hex
        self._below: set[psutil.Process] = set()
        self._log = folder / f"{self._mark}.log"
        command = [*prefix, *SERVE, *(options if "--port" in options else (*options, "--port", "0"))]
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                env={**SPARE, **env, MARK: self._mark},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def url(self) -> str:
        """The announced URL."""
        match = re.search(r"^Safelight serves tiny on (\S+), ", self.log, re.MULTILINE)
        assert match, self.log
        return match[1]

    def wait_until_ready(self) -> None:
        self.until(lambda: "Safelight serves" in self.log)

    def draw(self) -> None:
        with httpx2.Client(trust_env=False, timeout=PATIENCE) as client:
            answer = client.post(f"{self.url}/v1/images/generations", json=IMAGE)
        assert answer.status_code == 200 and answer.json()["data"][0]["b64_json"], answer.text

    def is_ready(self) -> bool:
        try:
            with httpx2.Client(trust_env=False, timeout=10.0) as client:
                return client.get(f"{self.url}/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    def processes(self) -> list[psutil.Process]:
        """All processes of this run, wherever they have gone.

        Some overwrite their environment with their title; they are known as descendants.
        """
        if self.process.poll() is None:
            self._below.update(psutil.Process(self.process.pid).children(recursive=True))
        matches = [
            process
            for process in self._below
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]
        for process in psutil.process_iter():
            try:
                is_marked = process.environ().get(MARK) == self._mark
                if is_marked and process.status() != psutil.STATUS_ZOMBIE and process not in matches:
                    matches.append(process)
            except psutil.Error:
                continue
        return matches

    def find(self, title: str) -> psutil.Process:
        """The process whose name or command line has `title`."""
        matches = [
            process
            for process in self.processes()
            if title in process.name() or title in " ".join(process.cmdline())
        ]
        assert matches, (title, [process.cmdline() for process in self.processes()])
        return matches[-1]

    def end(self) -> int:
        """The exit status of the command, which has left no process."""
        status = self.process.wait(PATIENCE)
        assert self.processes() == [], self.log
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        os.kill(self.supervisor.pid, number)
        return self.end()

    @property
    def supervisor(self) -> psutil.Process:
        """The process of the command itself, below a prefix that may have made namespaces."""
        return next(
            process for process in self.processes() if "safelight.service.cli" in " ".join(process.cmdline())
        )

    def until(self, holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < give_up and self.process.poll() is None, self.log
            time.sleep(0.2)


@contextmanager
def serve_command(
    folder: Path, *options: str, env: Mapping[str, str] = os.environ, prefix: tuple[str, ...] = ()
) -> Iterator[ServeCommand]:
    """Start the command; kill whatever it has left at the end of the block."""
    command = ServeCommand(folder, *options, env=env, prefix=prefix)
    try:
        yield command
    finally:
        for process in command.processes():
            process.kill()
        command.process.wait()
