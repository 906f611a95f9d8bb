"""The default service for clients: the gateway on a real socket, with all stages in this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.served_model import find_served_model
from safelight.service.settings import Settings
from tests.service.http_server import served
from tests.service.inprocess_backend import InProcessBackend

READY_SECONDS = 240.0


@contextmanager
def drawing_service(default_steps: str = "") -> Iterator[str]:
    """Serve the embedded model with default settings while the block runs; yields the URL.

    Args:
        default_steps: The steps of requests that do not say, in place of the model's.
    """
    settings = Settings(default_steps=default_steps)
    model = find_served_model(settings)
    pipeline = InProcessPipeline(model, settings)
    try:
        pipeline.wait()
        with served(build_gateway(InProcessBackend(pipeline), model, settings)) as url:
            _wait_until_ready(url)
            yield url
    finally:
        pipeline.close()


def _wait_until_ready(url: str) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while httpx2.get(f"{url}/readyz", timeout=READY_SECONDS).status_code != 200:
        assert time.monotonic() < give_up, "the service is not ready"
        time.sleep(0.1)
