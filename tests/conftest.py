"""For all tests: markers by folder, long tests on demand, a clean environment, and one live service."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any import, and inherited by every process that a test starts: nothing is fetched, and no setting of
# the developer's own environment applies.
DATA = tempfile.TemporaryDirectory(prefix="safelight-tests-")
for name in [name for name in os.environ if name.startswith("SAFELIGHT_")]:
    del os.environ[name]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "XDG_DATA_HOME": DATA.name,  # where images are stored by default
    "NO_COLOR": "1",
    # Several processes share the cores: a thread that waits for another must not spin.
    "OMP_WAIT_POLICY": "passive",
}
# A shell starts background processes with SIGINT ignored, which child processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

from safelight.service.runtime.environment import keep_loopback_direct  # noqa: E402
from tests.live import LiveService, serving  # noqa: E402

keep_loopback_direct()  # a proxy of the developer's environment must not get requests to this machine

pytest_plugins = ("tests.needs", "tests.skips", "tests.workers")
TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("chaos", "e2e", "page"):
            item.add_marker(folder)
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long; --long runs it"))


@pytest.fixture(scope="session")
def live_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A ready `safelight serve` with the embedded model on a free port, stopped when the session ends."""
    with serving(tmp_path_factory.mktemp("service")) as service:
        yield service
