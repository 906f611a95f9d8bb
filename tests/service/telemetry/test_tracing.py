"""Spans of one request, nested across processes; no spans without an endpoint."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from safelight.pipeline.params import GenerationParams
from safelight.service.errors import StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    RequestContext,
)
from safelight.service.previews import PreviewSink
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings
from safelight.service.telemetry.tracing import Tracing, make_tracing
from tests.fakes import MODEL, FakeBackend
from tests.live import serving
from tests.service.conftest import ROUTE

CLIENT_SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # W3C's own example


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider.get_tracer("test"))


class RecordingBackend(FakeBackend):
    """Keeps the contexts of its calls."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(*errors)
        self.contexts: list[RequestContext] = []

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        self.contexts.append(context)
        return await super().generate(params, output)


def test_the_gateways_span_belongs_under_the_clients_and_goes_with_the_context(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    backend = RecordingBackend()
    with TestClient(build_gateway(backend, MODEL, Settings(), tracing=tracing)) as client:
        assert (
            client.post(ROUTE, json={"prompt": "a", "n": 2}, headers={"traceparent": CLIENT_SPAN}).status_code
            == 200
        )
    [span] = [span for span in exporter.get_finished_spans() if span.name == "generate"]
    assert f"{span.context.trace_id:032x}" == CLIENT_SPAN.split("-")[1]
    assert span.parent is not None and span.attributes is not None
    assert f"{span.parent.span_id:016x}" == CLIENT_SPAN.split("-")[2]
    assert span.attributes["safelight.images"] == 2 and span.attributes["safelight.model"] == MODEL.id
    # the warm-up has neither a record nor a trace
    request_contexts = [context for context in backend.contexts if context.record_id]
    assert {context.traceparent for context in request_contexts} == {
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    }


def test_a_failure_is_recorded_in_the_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    backend = FakeBackend()
    with TestClient(build_gateway(backend, MODEL, Settings(), tracing=tracing)) as client:
        while not backend.drawn:  # the warm-up image, which must not get the error
            client.get("/livez")
        backend.errors = [StageFailed()]
        assert client.post(ROUTE, json={"prompt": "a"}).status_code == 503
    [span] = [span for span in exporter.get_finished_spans() if span.name == "generate"]
    assert not span.status.is_ok and span.events[0].name == "exception"


def test_without_an_endpoint_there_are_no_spans() -> None:
    tracing = make_tracing(Settings(), "gateway")
    with tracing.span("x", CLIENT_SPAN, steps=3) as span:
        span.set(rows=2)
        assert span.traceparent is None


def test_an_endpoint_without_the_library_is_a_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match="extra otel"):
        make_tracing(Settings(trace_endpoint="http://localhost:4318/v1/traces"), "gateway")


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, Span]]]]:
    """An OTLP collector: its endpoint, and the received spans, each with the name of its service."""
    spans: list[tuple[str, Span]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(
                self.rfile.read(int(self.headers["content-length"]))
            )
            for group in request.resource_spans:
                attributes = {a.key: a.value.string_value for a in group.resource.attributes}
                service = attributes["service.name"]
                spans.extend((service, span) for scope in group.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.long
async def test_one_request_is_one_trace_over_four_processes(
    collector: tuple[str, list[tuple[str, Span]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, spans = collector
    monkeypatch.setenv("SAFELIGHT_TRACE_ENDPOINT", endpoint)
    with serving(tmp_path, "--model", "tiny") as service:
        async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
            answer = await client.post(
                ROUTE, json={"prompt": "a", "num_inference_steps": 4}, headers={"traceparent": CLIENT_SPAN}
            )
            assert answer.status_code == 200
        for _ in range(100):
            trace = {name: span for name, span in spans if span.trace_id.hex() == CLIENT_SPAN.split("-")[1]}
            if len(trace) == 4:
                break
            await asyncio.sleep(0.1)
    assert trace.keys() == {"safelight-gateway", "safelight-encode", "safelight-denoise", "safelight-decode"}
    root = trace["safelight-gateway"]
    assert all(
        trace[f"safelight-{stage}"].parent_span_id == root.span_id
        for stage in ("encode", "denoise", "decode")
    )
    ends = [trace[f"safelight-{stage}"].end_time_unix_nano for stage in ("encode", "denoise", "decode")]
    assert ends == sorted(ends) and ends[-1] <= root.end_time_unix_nano
    rows = {a.key: a.value.int_value for a in trace["safelight-denoise"].attributes}
    assert rows["safelight.rows"] == 8 and rows["safelight.nfe"] == 4
