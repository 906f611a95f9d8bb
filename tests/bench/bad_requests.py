"""Sends every bad upload and body that the tests know, and says what each was answered and what it cost.

    python -m tests.bench.bad_requests [--json]

A gateway over the stages of the model `tiny`, in this process, gets the requests one after another. Memory is
how much the process grew at its peak while it answered, the request's own copies included. At the end stand
uploads that are unusual and drawn. The exit status is 1 if an answer is not the documented one, takes longer
than a second, or if memory has grown.
"""

import argparse
import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from rich.console import Console
from rich.table import Table
from starlette.testclient import TestClient

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.settings import Settings
from tests.service.http.bad_bodies import BAD_BODIES, BAD_FORMS, FORM, TEXT_PART, multipart
from tests.service.http.uploads import BAD_FILES, data_url, photo, png, save, sixteen_bits, with_orientation
from tests.service.inprocess_backend import InProcessBackend

EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"
SETTINGS = Settings(model="tiny", peak_tflops=1.0)
MEBIBYTE = 1 << 20
MAX_SECONDS = 1.0
MAX_PEAK = 64 * MEBIBYTE  # while one request is answered
MAX_GROWTH = 32 * MEBIBYTE  # after all of them
JSON = {"content-type": "application/json"}
Send = Callable[[TestClient], httpx2.Response]


@dataclass(frozen=True)
class Case:
    """A request, and the statuses of which its answer has one."""

    name: str
    statuses: tuple[int, ...]
    send: Send


@dataclass(frozen=True)
class Answer:
    """What a request was answered, and what that cost."""

    name: str
    status: int
    code: str
    message: str
    seconds: float
    peak_bytes: int
    is_expected: bool


def cases() -> Iterator[Case]:
    """All requests, bad ones first."""
    for name, make_bad in BAD_FILES.items():
        bad = make_bad()
        files = {"image": bad.image} | ({} if bad.mask is None else {"mask": bad.mask})
        yield Case(f"file: {name}", (400,), partial(_post, data=FORM, files=files))
    stream = FORM | {"image": data_url(b"no image"), "stream": True}
    yield Case("file: text, streamed", (400,), partial(_post, json=stream))
    for name, (body, status, _) in BAD_BODIES.items():
        yield Case(f"body: {name}", (status,), partial(_post, content=body, headers=JSON))
    for name, (body, _) in BAD_FORMS.items():
        yield Case(f"form: {name}", (400,), partial(_post, content=body, headers=_form("; boundary=X")))
    yield Case(
        "form: without a boundary", (400,), partial(_post, content=multipart([TEXT_PART]), headers=_form())
    )
    for kind in ("text/plain", "image/png", ""):
        yield Case(f"body: of the type {kind!r}", (415,), partial(_post, content=b"x", headers=_type(kind)))
    yield from _encoded_bodies()
    yield from _unusual_files()


def _encoded_bodies() -> Iterator[Case]:
    """Bodies that are compressed, or too large."""
    zeros = _gzip_of_zeros(256)
    limit = SETTINGS.max_upload_bytes
    for route in (EDITS, GENERATIONS):
        for name, body, coding, statuses in (
            ("zip bomb of 256 MiB", zeros, "gzip", (413,)),
            ("zip bomb in a zip bomb", gzip.compress(zeros), "gzip, gzip", (413,)),
            ("cut gzip", gzip.compress(b"{}")[:-3], "gzip", (400,)),
            ("brotli", b"x", "br", (415,)),
        ):
            headers = JSON | {"content-encoding": coding}
            send = partial(_post, route=route, content=body, headers=headers)
            yield Case(f"body: {name} to {route}", statuses, send)
    yield Case("form: too large", (413,), partial(_post, data=FORM, files={"image": bytes(limit + 1)}))


def _gzip_of_zeros(mebibytes: int) -> bytes:
    compressor = zlib.compressobj(1, wbits=31)
    block = bytes(MEBIBYTE)
    return b"".join(compressor.compress(block) for _ in range(mebibytes)) + compressor.flush()


def _unusual_files() -> Iterator[Case]:
    """Files that are drawn, though they are unusual."""
    cmyk = save(photo().convert("CMYK"), "JPEG")
    for name, file in {
        "CMYK JPEG": cmyk,
        "16-bit PNG": png(sixteen_bits()),
        "turned by EXIF": with_orientation(6),
        "palette with transparency": png(photo().convert("RGBA").quantize(16)),
        "one bit": png(photo().convert("1")),
        "one pixel": png(Image.new("RGB", (1, 1), "red")),
    }.items():
        data = FORM | {"num_inference_steps": "1"}
        yield Case(f"drawn: {name}", (200,), partial(_post, data=data, files={"image": file}))


def _type(kind: str) -> dict[str, str]:
    return {"content-type": kind}


def _form(boundary: str = "") -> dict[str, str]:
    return _type(f"multipart/form-data{boundary}")


def _post(client: TestClient, route: str = EDITS, **request: Any) -> httpx2.Response:
    return client.post(route, **request)


def answers(client: TestClient) -> Iterator[Answer]:
    """The answer to every request of `cases`."""
    for case in cases():
        before = _reset_peak()
        started = time.perf_counter()
        response = case.send(client)
        seconds = time.perf_counter() - started
        peak = _memory("VmHWM") - before
        is_error = response.headers["content-type"] == "application/json" and response.status_code >= 400
        error = response.json()["error"] if is_error else {"code": "", "message": ""}
        is_expected = response.status_code in case.statuses and is_error == (response.status_code >= 400)
        yield Answer(
            case.name, response.status_code, error["code"], error["message"], seconds, peak, is_expected
        )


def _reset_peak() -> int:
    """Let the peak of this process's memory begin anew; returns the memory that it has."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    """A field of `/proc/self/status` in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"the kernel tells no {name}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the answers as JSON")
    args = parser.parse_args()
    model = find_model("tiny")
    pipeline = InProcessPipeline(model, SETTINGS)
    pipeline.wait()
    client = TestClient(build_gateway(InProcessBackend(pipeline), model, SETTINGS))  # without a warm-up image
    list(answers(client))  # libraries are imported, and the allocator has its arenas
    before = _memory("VmRSS")
    report = list(answers(client))
    growth = _memory("VmRSS") - before
    pipeline.close()
    if args.json:
        print(json.dumps([asdict(answer) for answer in report], indent=1))
    else:
        _print_table(report, growth)
    slow = [answer for answer in report if answer.seconds > MAX_SECONDS]
    large = [answer for answer in report if answer.peak_bytes > MAX_PEAK]
    wrong = [answer for answer in report if not answer.is_expected]
    return int(bool(slow or large or wrong) or growth > MAX_GROWTH)


def _print_table(report: list[Answer], growth: int) -> None:
    table = Table("request", "status", "code", "seconds", "peak MiB", "message")
    for answer in report:
        mark = "" if answer.is_expected else " !"
        cells = (f"{answer.seconds:.3f}", f"{answer.peak_bytes / MEBIBYTE:.1f}", answer.message[:60])
        table.add_row(answer.name, f"{answer.status}{mark}", answer.code, *cells)
    console = Console(width=160)
    console.print(table)
    most = max(answer.seconds for answer in report)
    peak = max(answer.peak_bytes for answer in report) / MEBIBYTE
    console.print(
        f"{len(report)} requests; the slowest took {most:.3f} s, the largest {peak:.1f} MiB; "
        f"after all of them the process had grown by {growth / MEBIBYTE:.1f} MiB"
    )


if __name__ == "__main__":
    sys.exit(main())
