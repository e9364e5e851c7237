"""Spans sent by OpenTelemetry (OTLP over HTTP), configured by its own environment variables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.tracing import RequestSpan, SpanPlace

__all__ = ["OpenTelemetry"]

_SERVICE = "perk"


class OpenTelemetry:
    """A `service.tracing.Tracer`; may be used from any thread."""

    def __init__(self) -> None:
        # What the environment says of the service goes over our name for it.
        resource = Resource({"service.name": _SERVICE}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("perk-serve")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
        """As `Tracer.request`."""
        parent = self._propagator.extract(headers)
        # An error's message may quote a text: the span learns the status and no more.
        with self._tracer.start_as_current_span(
            "request",
            context=parent,
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield _Request(span)

    def here(self) -> SpanPlace | None:
        """As `Tracer.here`."""
        span = trace.get_current_span()
        return span if span.get_span_context().is_valid else None

    def add(
        self, name: str, started: float, ended: float, parent: SpanPlace | None, attributes: Mapping[str, str | int]
    ) -> SpanPlace | None:
        """As `Tracer.add`."""
        context = trace.set_span_in_context(parent) if isinstance(parent, trace.Span) else Context()
        span = self._tracer.start_span(
            name, context=context, start_time=_since_epoch(started), attributes=dict(attributes)
        )
        span.end(_since_epoch(ended))
        return span

    def close(self) -> None:
        """As `Tracer.close`."""
        self._provider.shutdown()


class _Request:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.trace_id: str | None = trace.format_trace_id(span.get_span_context().trace_id)

    def describe(self, name: str, attributes: Mapping[str, str | int]) -> None:
        self._span.update_name(name)
        self._span.set_attributes(attributes)


def _since_epoch(monotonic: float) -> int:
    """Nanoseconds since the epoch of a time of `time.monotonic`."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
