"""Prints SHA-256 digests of the images of 24 requests, by `safelight generate` and over HTTP.

Run it with `python -m tests.digests`. Two runs on the same kind of processor must print the same lines,
unless a change was meant to alter images. It only runs the installed `safelight` command, so it can also test
another checkout: `--safelight "PYTHON -m safelight.service.cli"`.
"""

import argparse
import base64
import hashlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REQUESTS = Path(__file__).with_name("requests.jsonl")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # asks no proxy
READY_SECONDS = 240.0
REQUEST_SECONDS = 240.0
# Request fields whose flag is not their name with dashes.
FLAGS = {"num_inference_steps": "--steps", "n": "-n"}
# `generate` takes the format from the file name, at the best quality.
HTTP_ONLY = ("output_format", "output_compression")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--safelight", default=str(Path(sys.executable).with_name("safelight")), help="the command to drive"
    )
    parser.add_argument("--by", choices=("generate", "http"), help="only by this way; default: both")
    args = parser.parse_args()
    command = shlex.split(args.safelight)
    requests = [json.loads(line) for line in REQUESTS.read_text().splitlines()]
    ways = {"generate": by_generate, "http": by_http}
    for source in [args.by] if args.by else ways:
        digests = ways[source](command, requests)
        for number, hexdigests in enumerate(digests, start=1):
            print(f"{source:8} {number:2} {' '.join(hexdigests)}", flush=True)


def by_generate(command: list[str], requests: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The digests of the files that `safelight generate` writes, request by request."""
    for request in requests:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / f"image.{request.get('output_format', 'png')}"
            subprocess.run(
                [*command, "generate", *_arguments(request), "-o", str(output)],
                check=True,
                capture_output=True,
            )
            yield [_digest(path.read_bytes()) for path in sorted(Path(folder).iterdir())]


def by_http(command: list[str], requests: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The digests of a service's images. All requests are sent at once, so that they share batches."""
    with _service(command) as url, ThreadPoolExecutor(len(requests)) as pool:
        yield from pool.map(lambda request: _post(url, request), requests)


def _arguments(request: dict[str, Any]) -> list[str]:
    arguments = []
    for field, value in request.items():
        if field == "prompt":
            arguments.append(value)
        elif field not in HTTP_ONLY:
            values = value if isinstance(value, list) else [value]
            arguments += [FLAGS.get(field, f"--{field.replace('_', '-')}"), *map(str, values)]
    return arguments


@contextmanager
def _service(command: list[str]) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [*command, "serve", "--port", str(port)], stdout=sys.stderr, start_new_session=True
    )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
        yield f"http://127.0.0.1:{port}/v1/images/generations"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with OPENER.open(url, timeout=10):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise SystemExit("the service did not become ready")


def _post(url: str, request: dict[str, Any]) -> list[str]:
    body = urllib.request.Request(url, json.dumps(request).encode(), {"content-type": "application/json"})
    with OPENER.open(body, timeout=REQUEST_SECONDS) as response:
        return [_digest(base64.b64decode(image["b64_json"])) for image in json.load(response)["data"]]


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()[:16]


if __name__ == "__main__":
    main()
