"""For all tests: markers, groups for parallel workers, a clean environment, and one live service."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any import, and inherited by every process that a test starts: nothing is fetched, and no setting of
# the developer's own environment applies.
for name in [name for name in os.environ if name.startswith("SAFELIGHT_")]:
    del os.environ[name]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_COLOR": "1",
    # Several processes share the cores: a thread that waits for another must not spin.
    "OMP_WAIT_POLICY": "passive",
}
# A shell starts background processes with SIGINT ignored, which child processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.live import LiveService, serving  # noqa: E402

pytest_plugins = ("tests.needs", "tests.skips")
TESTS = Path(__file__).parent
# The group of the tests that start Ray. It begins first, because it takes longest and mostly waits.
RAY_GROUP = "ray"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("e2e", "chaos"):
            item.add_marker(folder)
        if "live_service" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long; --long runs it"))
    if config.pluginmanager.hasplugin("xdist"):
        _group(items)


def _group(items: list[pytest.Item]) -> None:
    """Give parallel workers (`-n 2 --dist loadgroup`) whole files, and one of them all tests that start Ray.

    Fixtures of a module are then made once, and two clusters never compete for the cores.
    """
    for item in items:
        has_ray = item.get_closest_marker("ray") is not None
        item.add_marker(
            pytest.mark.xdist_group(RAY_GROUP if has_ray else item.path.relative_to(TESTS).as_posix())
        )
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(scope="session")
def live_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A ready `safelight serve` with the embedded model on a free port, stopped when the session ends."""
    with serving(tmp_path_factory.mktemp("service")) as service:
        yield service
