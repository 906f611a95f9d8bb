"""A service on Ray Serve whose application is deployed anew, as another version, for each line on stdin.

    python -m tests.chaos.upgraded_service PORT

It writes `ready` when every replica of a version serves.
"""

import logging
import sys

import ray
from ray import serve

from safelight.service import app
from safelight.service.settings import read_settings


def main() -> None:
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    settings = read_settings({"model": "tiny", "denoise_threads": 1, "shutdown_seconds": 30.0})
    version = 1
    while True:
        app.VERSION = str(version)
        serve.run(app.build_app(settings), route_prefix="/")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            return
        version += 1


if __name__ == "__main__":
    main()
