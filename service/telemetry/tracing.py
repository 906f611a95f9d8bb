"""OpenTelemetry spans of a request in the gateway and in every stage; off unless `trace_endpoint` is set.

A span's parent is passed on as a W3C `traceparent`: in the client's header, then in the `RequestContext`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

Attribute = str | int | float | bool


class Tracing:
    """Opens spans with `tracer`; does nothing without one."""

    def __init__(self, tracer: Tracer | None = None):
        self._tracer = tracer

    @contextmanager
    def span(self, name: str, parent: str | None, **attributes: Attribute) -> Iterator[LiveSpan]:
        """Open a span under `parent`, a traceparent; an exception that leaves the block is recorded in it."""
        if self._tracer is None:
            yield LiveSpan(None)
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract({"traceparent": parent} if parent else {})
        with self._tracer.start_as_current_span(
            name, context, attributes={f"safelight.{k}": v for k, v in attributes.items()}
        ) as span:
            yield LiveSpan(span)


class LiveSpan:
    """An open span; without tracing, a stand-in."""

    def __init__(self, span: Span | None):
        self._span = span

    def set(self, **attributes: Attribute) -> None:
        if self._span is not None:
            self._span.set_attributes({f"safelight.{name}": value for name, value in attributes.items()})

    @property
    def traceparent(self) -> str | None:
        """For spans in other processes that belong under this one."""
        if self._span is None:
            return None
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, set_span_in_context(self._span))
        return carrier.get("traceparent")


def make_tracing(settings: Settings, part: str) -> Tracing:
    """Tracing for one process of the service; `part` names it in traces.

    Raises:
        BadSetting: `trace_endpoint` is set and the extra `otel` is not installed.
    """
    if not settings.trace_endpoint:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise BadSetting("trace_endpoint needs the extra otel: pip install 'safelight[otel]'") from None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"safelight-{part}"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.trace_endpoint), schedule_delay_millis=1000)
    )
    return Tracing(provider.get_tracer("safelight"))
