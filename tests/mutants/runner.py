"""Runs mutants in child processes, several at a time, each within a time limit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.mutants.catalogue import Mutant
from tests.mutants.results import CAUGHT, INVALID, SURVIVED, TIMED_OUT, Results, Verdict
from tests.mutants.summary import Outcome
from tests.mutants.worker import run_tests, write_tiny
from tests.mutants.workspace import Workspace

# Of what the unchanged code takes, and at least: a hang must not be mistaken for a slow moment.
TIME_LIMIT_RATIO, MIN_TIME_LIMIT = 8.0, 90.0
BASELINE_TIME_LIMIT = 1200.0
# As in tests/conftest.py, for libraries that read it when they are imported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True, slots=True)
class Job:
    """Tests to run: under a mutant, or without one."""

    title: str
    tests: tuple[str, ...]
    mutant: Mutant | None
    time_limit: float
    on_result: Callable[[Verdict], None]


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job in a child process."""

    job: Job
    process: ForkServerProcess
    workspace: Workspace
    cleanup: contextlib.ExitStack  # undoes the change
    started: float

    @property
    def ends(self) -> float:
        return self.started + self.job.time_limit


class Runner:
    """Runs mutants; a context manager, which removes the workspaces.

    Args:
        results: Verdicts that are known already, and where new ones are kept.
        num_jobs: How many mutants run at a time.
        logs: Folder for what the tests print.
    """

    def __init__(self, results: Results, num_jobs: int, logs: Path):
        self._results = results
        self._num_jobs = num_jobs
        self._logs = logs
        self._seconds: dict[str, float] = {}  # of the unchanged code, by test file
        self._failing: set[str] = set()  # test files that fail without any mutant

    def __enter__(self) -> Self:
        os.environ |= ENVIRONMENT
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.mutants.preload"])
        self._logs.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="safelight-mutants-"))
        self._running: dict[Any, RunningJob] = {}
        self._free: list[Workspace] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._running.values():
            _end_group(running.process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, mutants: Sequence[Mutant]) -> list[Outcome]:
        """The verdict on every mutant, in order; each mutant's tests must pass without it."""
        self._check_tests(mutants)
        verdicts: dict[str, Verdict] = {}
        jobs = []
        for mutant in mutants:
            key = self._results.key_of_mutant(mutant)
            if self._failing & {*mutant.test_files}:
                verdicts[mutant.title] = Verdict(INVALID, 0.0)
            elif (verdict := self._results.get(key)) is not None:
                verdicts[mutant.title] = verdict
            else:
                jobs.append(self._mutant_job(mutant, key, verdicts))
        self._run_all(jobs, "mutants")
        return [Outcome(mutant, verdicts[mutant.title]) for mutant in mutants]

    def _mutant_job(self, mutant: Mutant, key: str, verdicts: dict[str, Verdict]) -> Job:
        def keep(verdict: Verdict) -> None:
            verdicts[mutant.title] = verdict
            if verdict.verdict != INVALID:
                self._results.put(key, mutant.title, verdict)

        seconds = sum(self._seconds[file] for file in mutant.test_files)
        limit = max(MIN_TIME_LIMIT, TIME_LIMIT_RATIO * seconds)
        return Job(mutant.title, mutant.tests, mutant, limit, keep)

    def _check_tests(self, mutants: Sequence[Mutant]) -> None:
        """Run all tests that the mutants name without any mutant, a file at a time."""
        tests_by_file: defaultdict[str, set[str]] = defaultdict(set)
        for mutant in mutants:
            for test in mutant.tests:
                tests_by_file[test.partition("::")[0]].add(test)
        jobs = []
        for file, tests in sorted(tests_by_file.items()):
            ids = (file,) if file in tests else tuple(sorted(tests))
            key = self._results.key_of_tests(ids)
            if (verdict := self._results.get(key)) is not None:
                self._seconds[file] = verdict.seconds
            else:
                jobs.append(self._baseline_job(file, ids, key))
        self._run_all(jobs, "test files without a mutant")

    def _baseline_job(self, file: str, ids: tuple[str, ...], key: str) -> Job:
        def keep(verdict: Verdict) -> None:
            self._seconds[file] = verdict.seconds
            if verdict.verdict == SURVIVED:
                self._results.put(key, file, verdict)
            else:
                self._failing.add(file)

        return Job(file, ids, None, BASELINE_TIME_LIMIT, keep)

    def _run_all(self, jobs: Sequence[Job], what: str) -> None:
        if not jobs:
            return
        self._make_workspaces()
        waiting, num_done = deque(jobs), 0
        while waiting or self._running:
            while waiting and self._free:
                self._start(waiting.popleft())
            timeout = min(running.ends for running in self._running.values()) - time.monotonic()
            ended = wait(list(self._running), max(0.0, timeout))
            now = time.monotonic()
            overdue = [sentinel for sentinel, running in self._running.items() if running.ends <= now]
            for sentinel in {*ended, *overdue}:
                num_done += 1
                running = self._running.pop(sentinel)
                verdict = self._finish(running, is_overdue=sentinel not in ended)
                print(
                    f"[{num_done:>3} of {len(jobs)} {what}] {verdict.verdict:<9} {verdict.seconds:6.1f} s  "
                    f"{running.job.title}",
                    flush=True,
                )

    def _make_workspaces(self) -> None:
        if self._free:
            return
        temporary_files = self._folder / "temporary-files"
        temporary_files.mkdir()
        self._free = [
            Workspace(self._folder / str(number), temporary_files) for number in range(self._num_jobs)
        ]
        arguments = (self._free[0].tree, temporary_files, self._logs / "tiny.log")
        process = self._context.Process(target=write_tiny, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the checkpoint tiny cannot be written, see {arguments[-1]}")

    def _start(self, job: Job) -> None:
        workspace = self._free.pop()
        cleanup = contextlib.ExitStack()
        cleanup.enter_context(workspace.changed(job.mutant))
        log = self._logs / f"{re.sub(r'[^A-Za-z0-9]+', '-', job.title)}.log"
        arguments = (workspace.tree, workspace.temporary, log, job.tests)
        process = self._context.Process(target=run_tests, args=arguments)
        process.start()
        self._running[process.sentinel] = RunningJob(job, process, workspace, cleanup, time.monotonic())

    def _finish(self, running: RunningJob, is_overdue: bool) -> Verdict:
        seconds = round(time.monotonic() - running.started, 1)
        _end_group(running.process)
        running.process.join()
        running.cleanup.close()
        self._free.append(running.workspace)
        kind = TIMED_OUT if is_overdue else _kind_of(running.process.exitcode)
        verdict = Verdict(kind, seconds)
        running.job.on_result(verdict)
        return verdict


def _kind_of(exit_status: int | None) -> str:
    """The verdict by pytest's exit status. A crash is caught, and so is an error while collecting tests."""
    if exit_status == pytest.ExitCode.OK:
        return SURVIVED
    if exit_status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        return INVALID
    return CAUGHT


def _end_group(process: ForkServerProcess) -> None:
    """End a child and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.pid is not None:
            os.killpg(process.pid, signal.SIGKILL)
