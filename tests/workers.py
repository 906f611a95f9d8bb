"""How the tests are divided among parallel workers (`pytest -n 2`, as `make test` does).

A worker gets whole files, so that fixtures of a module are made once. One of them gets all files that start
Ray, one after another: clusters then never compete for the cores, and the live service is started once.
"""

from __future__ import annotations

from typing import Any

import pytest

# These begin first, because together they take longest.
RAY_FILES = (
    "tests/deploy/test_one_node.py",
    "tests/deploy/test_placement.py",
    "tests/deploy/test_prometheus.py",
    "tests/e2e/test_accounts.py",
    "tests/e2e/test_service.py",
    "tests/e2e/test_batches.py",
    "tests/e2e/test_ports.py",
    "tests/e2e/test_streaming.py",
    "tests/e2e/test_model_changes.py",
    "tests/loadtests/test_command.py",
    "tests/readme/test_live_commands.py",
    "tests/e2e/test_autoscaling.py",
    "tests/chaos/test_conservation.py",
    "tests/chaos/test_restarted_jobs.py",
    "tests/chaos/test_upgrade.py",
    "tests/loadtests/test_chaos.py",
    "tests/environments/test_start.py",
    "tests/environments/test_death.py",
    "tests/service/telemetry/test_tracing.py",
    "tests/e2e/test_families.py",
    "tests/test_wheel.py",
)
RANKS = {file: rank for rank, file in enumerate(RAY_FILES)}


def scope_of(node_id: str) -> str:
    """The part of the tests that a test belongs to; a worker runs a part as a whole."""
    file = node_id.partition("::")[0]
    return "ray" if file in RANKS else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `RAY_FILES`, and let them begin.

    Raises `UsageError` if a file that uses the live service is missing there.
    """
    for item in items:
        file = item.nodeid.partition("::")[0]
        if file in RANKS:
            item.add_marker("ray")
        elif "live_service" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{file} uses the live service, so RAY_FILES in {__file__} must name it")
    items.sort(key=lambda item: RANKS.get(item.nodeid.partition("::")[0], len(RANKS)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """xdist's scheduler by scopes, with the scopes above."""
    from xdist.scheduler import LoadScopeScheduling

    class PartScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return PartScheduling(config, log) if config.getoption("dist") == "loadscope" else None
