"""The load tests' own parts: traces, open-loop replay, image checks, percentiles, verdicts, the report."""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loadtests import metrics_sampler, plots, traces
from loadtests.accounting import AccountingSnapshot, compare
from loadtests.core_seconds import CoreClock, CoreSeconds, name_of
from loadtests.image_checks import fault_of
from loadtests.metrics_sampler import MetricsSample, MetricsSeries, sample_metrics
from loadtests.replay import replay, was_behind_schedule
from loadtests.report import write_report
from loadtests.results import Phase, RequestResult, percentile
from loadtests.service import keep_loopback_direct
from loadtests.tables import Table
from loadtests.traces import InvalidTrace, ScheduledRequest, poisson, read_trace, write_trace
from loadtests.verdicts import EngineAlone, Thresholds, judge
from safelight.pipeline.benchmark import trace as benchmark_trace

ROWS = "safelight_stage_rows"
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
def server(refuse_every: int = 0, hold: threading.Barrier | None = None) -> Iterator[str]:
    """A stub service that refuses every n-th request, and answers none before `hold` is full."""
    counting = threading.Lock()
    num_requests = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal num_requests
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with counting:
                num_requests += 1
            if hold is not None:
                hold.wait(60.0)
            if refuse_every and num_requests % refuse_every == 0:
                self.respond(429, json.dumps({"error": {"code": "queue_full"}}))
            else:
                self.respond(200, json.dumps(answer([png()], body["seed"])))

        def do_GET(self) -> None:
            samples = "".join(  # of two models, the second of which draws nothing
                f'safelight_stage_rows{{stage="denoise",model="{model}"}} {rows}\n'
                for model, rows in (("one", num_requests), ("two", 0))
            )
            self.respond(200, f"# TYPE safelight_stage_rows gauge\n{samples}")

        def respond(self, status: int, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def result(
    latency: float, status: int = 200, images: int = 1, due: float = 0.0, delay: float = 0.0
) -> RequestResult:
    """The result of a request.

    Args:
        latency: Seconds from the time at which it was due to its answer.
        status: HTTP status of the answer.
        images: Number of images in a 200 answer.
        due: Seconds from the start at which it was to be sent.
        delay: Seconds by which it was sent later than that.
    """
    return RequestResult(
        due,
        due + delay,
        due + latency,
        status,
        None if status == 200 else "queue_full",
        images if status == 200 else 0,
        0.1,
        20,
    )


def test_the_mix_is_that_of_the_benchmark() -> None:
    for name in ("STEPS", "GUIDANCE", "SOLVERS", "PROMPTS"):
        assert getattr(traces, name) == getattr(benchmark_trace, name)


def test_poisson_schedules_have_the_rate_and_depend_on_the_seed_only() -> None:
    trace = poisson(50.0, 40.0, ["8x8"], seed=1)
    assert len(trace) == pytest.approx(2000, rel=0.1)
    gaps = np.diff([request.at for request in trace])
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # as for exponential gaps
    assert trace == poisson(50.0, 40.0, ["8x8"], seed=1) != poisson(50.0, 40.0, ["8x8"], seed=2)


def test_a_trace_is_read_as_it_was_written_and_can_be_sped_up(tmp_path: Path) -> None:
    trace = poisson(5.0, 4.0, ["8x8"], seed=0)
    write_trace(tmp_path / "trace", trace)
    bodies = [request.body for request in read_trace(tmp_path / "trace")]
    assert bodies == [request.body for request in trace]
    assert read_trace(tmp_path / "trace", speed=2.0)[-1].at == pytest.approx(trace[-1].at / 2, abs=1e-5)


@pytest.mark.parametrize(
    "line", ["no json", '{"at": 1}', '{"at": "soon", "body": {}}', '{"at": 1, "body": 3}']
)
def test_an_invalid_trace_is_refused_and_the_line_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "trace").write_text('{"at": 0, "body": {}}\n' + line + "\n")
    with pytest.raises(InvalidTrace, match="line 2"):
        read_trace(tmp_path / "trace")


@pytest.mark.parametrize(
    ("response", "fault"),
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
def test_wrong_images_are_faults(response: dict[str, Any], fault: str | None) -> None:
    reported = fault_of(BODY, response)
    assert reported == fault or (fault is not None and reported is not None and reported.startswith(fault))


def test_an_open_loop_does_not_wait_for_answers() -> None:
    """None of eight requests is answered before all have arrived. A closed loop would wait for ever."""
    with server(hold=threading.Barrier(8)) as url:
        results = asyncio.run(replay(url, [ScheduledRequest(0.0, BODY)] * 8))
    assert all(outcome.is_good for outcome in results)
    assert max(outcome.sent for outcome in results) < min(outcome.done for outcome in results)


def test_latency_counts_from_the_scheduled_time() -> None:
    """Of a request that was due a minute before it could be sent, too."""
    with server() as url:
        (late,) = asyncio.run(replay(url, [ScheduledRequest(-60.0, BODY)]))
    assert late.due == -60.0
    assert late.latency == late.done + 60.0 > late.done - late.sent + 60.0


def test_answers_that_are_not_good_do_not_count() -> None:
    refused = result(9.0, status=429)
    wrong = replace(result(9.0, images=5), fault="an image of one colour")
    phase = Phase("steady", 0.0, (result(1.0, images=2), wrong, refused, result(10.0)))
    assert [outcome.latency for outcome in phase.good] == [1.0, 10.0]
    assert phase.latencies == [1.0, 10.0]
    assert phase.images_per_hour == pytest.approx(3600.0 * 3 / 10.0)
    assert phase.faults == {"an image of one colour": 1, "queue_full": 1}


def test_refusals_and_missing_answers_are_results() -> None:
    with server(refuse_every=2) as url:
        results = asyncio.run(replay(url, [ScheduledRequest(0.0, BODY)] * 4))
    assert sorted(outcome.status for outcome in results) == [200, 200, 429, 429]
    assert {outcome.fault for outcome in results} == {None, "queue_full"}
    (silent,) = asyncio.run(replay("http://127.0.0.1:9", [ScheduledRequest(0.0, BODY)]))
    assert (silent.status, silent.is_good) == (0, False)
    assert silent.fault == "no answer: ConnectError"


def test_a_client_behind_schedule_is_detected() -> None:
    assert was_behind_schedule([result(1.0, delay=0.5)] * 10)
    assert not was_behind_schedule([result(1.0)] * 1000 + [result(1.0, delay=0.5)])


@given(values=st.lists(st.floats(0.0, 1e3), min_size=1, max_size=40), percent=st.floats(0.0, 100.0))
def test_percentiles_equal_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


ALONE = Phase("one by one", 0.0, (result(1.0), result(2.0, due=1.0)))
BUSY = Phase("saturated", 0.0, (result(4.0, images=2), result(8.0, status=429)))  # 900 images/h
STEADY = Phase("at 60%", 0.0, (result(3.0), result(5.0)))


def test_the_failures_of_a_replayed_trace_are_counted_once() -> None:
    """It stands for all phases."""
    (verdict,) = judge(Thresholds(max_failures=0), BUSY, BUSY, BUSY, [], None)
    assert (verdict.measured, verdict.is_met) == ("1", False)


def engine(images_per_hour: float, **core_seconds: float) -> EngineAlone:
    return EngineAlone(images_per_hour, CoreSeconds(core_seconds, 2))


def test_every_threshold_can_fail() -> None:
    met = judge(Thresholds(900.0, 5.0, 3.0, 1, 0.9), ALONE, BUSY, STEADY, [], engine(950.0))
    assert [verdict.is_met for verdict in met] == [True] * 5
    assert BUSY.images_per_hour == 900.0
    missed = judge(Thresholds(901.0, 4.8, 2.5, 0, 0.96), ALONE, BUSY, STEADY, [], engine(950.0))
    assert [verdict.is_met for verdict in missed] == [False] * 5
    burst = replace(BUSY, name="burst")
    with_a_burst = judge(Thresholds(max_failures=1), ALONE, BUSY, STEADY, [burst], None)
    assert [(verdict.measured, verdict.is_met) for verdict in with_a_burst] == [("2", False)]


def test_rates_and_ratios_are_those_of_the_intervals() -> None:
    rows, ticks = ("rows", "denoise"), ("ticks", "denoise")
    series = MetricsSeries(
        [
            MetricsSample(1.0, {rows: 10.0, ticks: 2.0}),
            MetricsSample(3.0, {rows: 40.0, ticks: 5.0}),
            MetricsSample(3.0, {rows: 41.0, ticks: 5.0}),
            MetricsSample(7.0, {rows: 61.0, ticks: 9.0}),
        ]
    )
    assert series.rates("rows", "denoise") == [(3.0, 15.0), (7.0, 5.0)]
    assert series.ratios("rows", "ticks", "denoise") == [(3.0, 10.0), (7.0, 5.0)]


@pytest.mark.parametrize(
    ("others", "share"),
    [
        ({}, 1.0),
        ({"Denoiser": 100.0}, 1.0),  # its own time is no excuse, however long it waits
        ({"Gateway": 1.0}, 4 / 5),  # the engine alone takes 4 s for two images, and loses one
        ({"Gateway": 0.5, "Ray": 0.3, "load test": 0.2}, 4 / 5),
        ({"Ray": 100.0}, 1 / 2),  # a core that is shared is not lost
    ],
)
def test_the_bar_is_a_share_of_what_other_processes_leave(others: dict[str, float], share: float) -> None:
    alone = engine(1800.0, **others)
    assert alone.reachable_share(2) == pytest.approx(share)
    bar = 900.0 / 1800.0 / share
    for min_share, is_met in ((bar - 0.001, True), (bar + 0.001, False)):
        thresholds = Thresholds(max_failures=None, min_share_of_bench=min_share)
        (verdict,) = judge(thresholds, ALONE, BUSY, STEADY, [], alone)
        assert verdict.is_met is is_met
        assert f"of which {share:.0%} are reachable" in verdict.reason


def test_an_absolute_throughput_that_no_engine_reaches_here_does_not_fail() -> None:
    thresholds = Thresholds(min_images_per_hour=1000.0, max_failures=None)
    alone = engine(1200.0, Ray=6.0)  # half of it is reachable
    (verdict,) = judge(thresholds, ALONE, BUSY, STEADY, [], alone)
    assert verdict.is_met is None
    assert "the engine alone draws 1200 images/h on 2 cores, of which 50% are reachable" in verdict.reason
    assert "Ray 6.0" in verdict.reason
    (verdict,) = judge(thresholds, ALONE, BUSY, STEADY, [], engine(1200.0))
    assert (verdict.is_met, verdict.reason) == (False, "")
    (verdict,) = judge(thresholds, ALONE, BUSY, STEADY, [], None)  # the engine was not measured
    assert verdict.is_met is False


def test_a_latency_that_one_request_alone_exceeds_does_not_fail() -> None:
    thresholds = Thresholds(max_p95_s=1.9, max_failures=None)
    (verdict,) = judge(thresholds, ALONE, BUSY, STEADY, [], None)
    assert verdict.is_met is None
    assert verdict.reason == "one request at a time, without a queue, has a p95 of 1.95 s"
    (verdict,) = judge(Thresholds(max_p95_s=1.96, max_failures=None), ALONE, BUSY, STEADY, [], None)
    assert (verdict.is_met, verdict.reason) == (False, "")


def test_processor_time_is_added_up_by_what_processes_do() -> None:
    """A child that computes, under the title that Ray gives to a replica, and this process."""
    code = "import sys, time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, "ray::ServeReplica:safelight:VaeDecoder"]
    clock = CoreClock(os.getpid())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        used = clock.read()
        child.communicate()
    assert used.by_name.keys() >= {"VaeDecoder", "load test"}
    assert 0.45 < used.by_name["VaeDecoder"] < 1.0
    assert used.others == sum(used.by_name.values())
    assert name_of(["/usr/bin/raylet", "--port=1"]) == "Ray"


def test_sampled_metrics_become_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_sampler, "INTERVAL_SECONDS", 0.01)

    async def sample() -> MetricsSeries:
        with server() as url:
            async with asyncio.timeout(60.0), sample_metrics(url) as series:
                for count in (5, 10, 15):
                    await replay(url, [ScheduledRequest(0.0, BODY)] * 5)
                    while not series.samples or series.samples[-1].value(ROWS, "denoise") < count:
                        await asyncio.sleep(0.01)
            return series

    series = asyncio.run(sample())
    first, last = series.samples[0], series.samples[-1]
    rates = series.rates(ROWS, "denoise")
    growth = [rate * (b.at - a.at) for (_, rate), (a, b) in zip(rates, pairwise(series.samples), strict=True)]
    assert all(rate >= 0.0 for _, rate in rates)
    assert sum(growth) == pytest.approx(last.value(ROWS, "denoise") - first.value(ROWS, "denoise"))
    assert last.value(ROWS, "denoise") == 15.0


def test_a_report_shows_missed_targets_and_faults(tmp_path: Path) -> None:
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
    markdown = (tmp_path / "run" / "report.md").read_text()
    assert "| throughput, saturated | at least 1000000 images/h |" in markdown
    assert "| **no** |" in markdown
    assert "1 queue_full" in markdown
    assert "![latency](latency.png)" in markdown
    page = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/png;base64," in page
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["phases"][0]["faults"] == {"queue_full": 1}
    assert report["targets"][0].keys() == {"name", "wanted", "got", "is_met", "reason"}


def test_a_table_as_text_has_aligned_columns() -> None:
    text = Table("", ["target", "met"], [["p95", "**no**"], ["throughput", "yes"]]).as_text()
    assert text == "target      met\np95         no\nthroughput  yes"


def test_accounting_and_clients_are_compared() -> None:
    results = tuple(RequestResult(float(n), float(n), n + 1.0, 200, None, 1, 0.5, 20) for n in range(10))
    phase = Phase("steady", 0.0, results)
    before = AccountingSnapshot(100, 1000, 50.0, (9.0,) * 3)
    after = AccountingSnapshot(110, 1200, 55.05, (1.0,) * 10 + before.latencies)
    assert all(verdict.is_met for verdict in compare(before, after, [phase], phase, 0.02))
    wrong_snapshots = {
        "images": replace(after, images=109),
        "network evaluations": replace(after, nfe=1180),
        "device-seconds": replace(after, device_seconds=56.0),
        "latency p50": replace(after, latencies=(0.9,) * 10),
    }
    for name, wrong in wrong_snapshots.items():
        verdicts = compare(before, wrong, [phase], phase, 0.02)
        missed = [verdict.name for verdict in verdicts if not verdict.is_met]
        assert missed and f"against clients: {name}" in missed[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "localhost,127.0.0.1,::1"), ("a.org", "a.org,localhost,127.0.0.1,::1"), ("*", "*")],
)
def test_a_service_on_this_machine_is_not_asked_by_a_proxy(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setenv("no_proxy", before)
    monkeypatch.setenv("NO_PROXY", before)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    keep_loopback_direct()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after
