"""Counts skipped tests in the last lines of a run, with their reasons: a pytest plugin.

With `TESTS_IN_CI=1` a skip fails the run, unless its reason is listed here: a test that never runs keeps no
promise.
"""

import re
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.needs import IS_CI

# Complete reasons, as regular expressions.
ALLOWED_IN_CI = (
    "long; --long runs it",  # `make check-long` runs them
    "no CUDA device; `make gpu` runs it where there is one",
)


def refused(reasons: Iterable[str]) -> list[str]:
    """The reasons that no pattern of `ALLOWED_IN_CI` allows."""
    return [
        reason
        for reason in reasons
        if not any(re.fullmatch(pattern, reason) is not None for pattern in ALLOWED_IN_CI)
    ]


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or a whole module was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _counts(config: pytest.Config) -> Counter[str]:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    return Counter(map(reason_of, terminal.stats.get("skipped", ()))) if terminal else Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for a skip that continuous integration does not allow."""
    is_worker = hasattr(session.config, "workerinput")
    if IS_CI and not is_worker and refused(_counts(session.config)):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = _counts(config)
    if not counts:
        return
    terminalreporter.section(f"{counts.total()} skipped", sep="-")
    for reason, count in counts.most_common():
        terminalreporter.line(f"{count:5} {reason}")
    if IS_CI:
        for reason in refused(counts):
            terminalreporter.line(f"FAILED: tests/skips.py does not allow this skip: {reason}", red=True)
