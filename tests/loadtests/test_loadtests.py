"""Load tests, tested: traces, the open loop, what counts as an image, percentiles, verdicts, the report."""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loadtests import plots
from loadtests.accounts import Books, compare
from loadtests.figures import Phase, Thresholds, judge, percentile
from loadtests.image_checks import fault_of
from loadtests.replay import Result, replay, was_late
from loadtests.report import write_report
from loadtests.traces import Arrival, InvalidTrace, poisson, read_trace, write_trace
from loadtests.watch import watching

BODY = {"prompt": "cat", "size": "8x8", "seed": 3}


def png(size: tuple[int, int] = (8, 8), flat: bool = False) -> str:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[0, 0] = 0 if flat else 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def answer(images: list[str], seed: int = 3) -> dict[str, Any]:
    cost = {
        "seeds": [seed] * len(images),
        "device_seconds": {"encode": 0.0, "denoise": 0.5, "decode": 0.25},
        "nfe": 20,
    }
    return {"data": [{"b64_json": image} for image in images], "usage": {"safelight": cost}}


@contextmanager
def server(seconds: float = 0.0, refuse_every: int = 0) -> Iterator[str]:
    """A service that needs `seconds` for a request, one at a time, and refuses some."""
    one_at_a_time, counted = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with one_at_a_time:
                counted[0] += 1
                time.sleep(seconds)
            refused = refuse_every and counted[0] % refuse_every == 0
            self.say(
                429 if refused else 200,
                {"error": {"code": "queue_full"}} if refused else answer([png()], body["seed"]),
            )

        def do_GET(self) -> None:
            self.say(
                200,
                f'# TYPE safelight_stage_rows gauge\nsafelight_stage_rows{{stage="denoise"}} {counted[0]}\n',
            )

        def say(self, status: int, said: Any) -> None:
            out = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def result(latency: float, status: int = 200, images: int = 1, due: float = 0.0, late: float = 0.0) -> Result:
    return Result(
        due,
        due + late,
        due + latency,
        status,
        None if status == 200 else "queue_full",
        images if status == 200 else 0,
        0.1,
        20,
    )


def test_poisson_arrivals_come_at_the_rate_and_are_the_seeds_alone() -> None:
    trace = poisson(50.0, 40.0, ["8x8"], seed=1)
    assert len(trace) == pytest.approx(2000, rel=0.1)
    gaps = np.diff([each.at for each in trace])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # as exponential gaps have it
    assert trace == poisson(50.0, 40.0, ["8x8"], seed=1) != poisson(50.0, 40.0, ["8x8"], seed=2)


def test_a_recorded_trace_comes_back_and_faster_if_asked(tmp_path: Path) -> None:
    trace = poisson(5.0, 4.0, ["8x8"], seed=0)
    write_trace(tmp_path / "trace", trace)
    assert [each.body for each in read_trace(tmp_path / "trace")] == [each.body for each in trace]
    assert read_trace(tmp_path / "trace", speed=2.0)[-1].at == pytest.approx(trace[-1].at / 2, abs=1e-5)


@pytest.mark.parametrize(
    "line", ["no json", '{"at": 1}', '{"at": "soon", "body": {}}', '{"at": 1, "body": 3}']
)
def test_a_trace_that_is_none_is_refused_by_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "trace").write_text('{"at": 0, "body": {}}\n' + line + "\n")
    with pytest.raises(InvalidTrace, match="line 2"):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (answer([png()]), None),
        (answer([]), "0 images instead of 1"),
        (answer([png((4, 8))]), "an image of 4x8 instead of 8x8"),
        (answer([png(flat=True)]), "an image of one colour"),
        (answer(["bm8="]), "no image: UnidentifiedImageError"),
        (answer([png()[:60]]), "no image: "),
        (answer([png()], seed=4), "seeds [4] instead of 3"),
    ],
)
def test_what_is_no_image_is_a_fault(found: dict[str, Any], fault: str | None) -> None:
    said = fault_of(BODY, found)
    assert said == fault or (fault is not None and said is not None and said.startswith(fault))


def test_an_open_loop_does_not_wait_and_counts_from_when_a_request_was_due() -> None:
    """Eight at once, a twentieth of a second each: the last has waited for all the others, which a closed loop would not tell."""
    with server(seconds=0.05) as url:
        results = asyncio.run(replay(url, [Arrival(0.0, BODY)] * 8))
    assert all(each.is_good for each in results)
    latencies = sorted(each.latency for each in results)
    assert latencies[-1] >= 8 * 0.05
    assert latencies[0] < latencies[-1] / 2


def test_refusals_and_silence_are_results() -> None:
    with server(refuse_every=2) as url:
        results = asyncio.run(replay(url, [Arrival(0.0, BODY)] * 4))
    assert sorted(each.status for each in results) == [200, 200, 429, 429]
    assert {each.fault for each in results} == {None, "queue_full"}
    (silent,) = asyncio.run(replay("http://127.0.0.1:9", [Arrival(0.0, BODY)]))
    assert (silent.status, silent.is_good) == (0, False)
    assert silent.fault == "no answer: ConnectError"


def test_a_replayer_that_is_late_itself_is_found_out() -> None:
    assert was_late([result(1.0, late=0.5)] * 10)
    assert not was_late([result(1.0)] * 1000 + [result(1.0, late=0.5)])


@given(values=st.lists(st.floats(0.0, 1e3), min_size=1, max_size=40), percent=st.floats(0.0, 100.0))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


def test_every_threshold_can_fail() -> None:
    alone = Phase("one by one", 0.0, (result(1.0), result(2.0, due=1.0)))
    busy = Phase("saturated", 0.0, (result(4.0, images=2), result(8.0, status=429)))
    steady = Phase("at 60%", 0.0, (result(3.0), result(5.0)))
    held = judge(Thresholds(900.0, 5.0, 3.0, 1, 0.9), alone, busy, steady, [], bench=950.0)
    assert [each.is_met for each in held] == [True] * 5
    assert busy.images_per_hour == 900.0
    missed = judge(Thresholds(901.0, 4.8, 2.5, 0, 0.96), alone, busy, steady, [], bench=950.0)
    assert [each.is_met for each in missed] == [False] * 5


def test_what_was_watched_becomes_rates() -> None:
    async def look() -> list[tuple[float, float]]:
        with server() as url:
            async with watching(url) as watched:
                for _ in range(3):
                    await replay(url, [Arrival(0.0, BODY)] * 5)
                    await asyncio.sleep(0.8)
            return watched.rates("safelight_stage_rows", "denoise")

    rates = asyncio.run(look())
    assert rates
    assert all(rate > 0.0 for _, rate in rates)


def test_a_report_says_what_was_missed(tmp_path: Path) -> None:
    phase = Phase("saturated", 7200.0, (result(1.0), result(2.0), result(3.0, status=429)))
    verdicts = judge(Thresholds(min_images_per_hour=1e6), phase, phase, phase, [], None)
    write_report(
        tmp_path / "run",
        "Load test",
        {"model": "m"},
        [phase],
        verdicts,
        {"latency": plots.latency_cdf([phase])},
    )
    said = (tmp_path / "run" / "report.md").read_text()
    assert "| images per hour, saturated | at least 1000000 |" in said
    assert "| **no** |" in said
    assert "1 queue_full" in said
    assert "![latency](latency.png)" in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert json.loads((tmp_path / "run" / "report.json").read_text())["phases"][0]["faults"] == {
        "queue_full": 1
    }


def test_books_and_clients_are_compared() -> None:
    results = tuple(Result(float(n), float(n), n + 1.0, 200, None, 1, 0.5, 20) for n in range(10))
    phase = Phase("steady", 0.0, results)
    before = Books(100, 1000, 50.0, (9.0,) * 3)
    told = Books(110, 1200, 55.05, (1.0,) * 10 + before.latencies)
    assert all(verdict.is_met for verdict in compare(before, told, [phase], phase, 0.02))
    lost = [
        replace(told, images=109),
        replace(told, nfe=1180),
        replace(told, device_seconds=56.0),
        replace(told, latencies=(0.9,) * 10),
    ]
    for wrong, name in zip(lost, ("images", "network evaluations", "device-seconds", "p50"), strict=True):
        missed = [
            verdict.name for verdict in compare(before, wrong, [phase], phase, 0.02) if not verdict.is_met
        ]
        assert missed and f"account of {name}" in missed[0]
