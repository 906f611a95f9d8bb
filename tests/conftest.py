"""What every test stands on: markers from the folder, long forms on demand, nothing fetched, one live service."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before anything is imported, and inherited by every process that a test starts.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_COLOR": "1",
}
# A shell ignores Ctrl-C on behalf of what it runs in the background, and that too would be inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.live import LiveService, serving  # noqa: E402

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long forms of the slow tests as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in ("e2e", "chaos"):
            item.add_marker(folder)
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="a long form; --long runs it"))


@pytest.fixture(scope="session")
def live_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """`safelight serve` with the embedded model on a free port, ready; stopped by Ctrl-C when the session ends."""
    with serving(tmp_path_factory.mktemp("service")) as service:
        yield service
