"""Spans reach a real collector (OTLP over HTTP), and nothing is loaded for them where there is none."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.errors import LoadFailed
from service.tracing import open_tracer

_TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
_PARENT_ID = "b7ad6b7169203331"


class Collector:
    """Takes spans on a free port.

    Attributes:
        bodies: what was sent, one an export.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                zipped = self.headers.get("Content-Encoding") == "gzip"
                collector.bodies.append(gzip.decompress(body) if zipped else body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Standard error belongs to the tests."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[Span]:
        """All spans so far."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, and the environment that names it."""
    running = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.address)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "perk-test")
    yield running
    running.stop()


def _attributes(span: Span) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def test_requests_questions_and_encodes_are_spans_of_one_trace(
    start_service: Callable[..., Any], collector: Collector, story: str
) -> None:
    service = start_service().until_ready()
    service.client.headers["traceparent"] = f"00-{_TRACE_ID}-{_PARENT_ID}-01"
    document = service.encode(story)
    body = {"question": "Where is Mary?", "max_tokens": 3}
    service.client.post(f"/documents/{document['id']}/ask", json=body)
    del service.client.headers["traceparent"]
    service.client.get("/nowhere")
    service.stop()

    spans = collector.spans
    traced = {span.name: span for span in spans if span.trace_id.hex() == _TRACE_ID}
    sent, asked = traced["POST /documents"], traced["POST /documents/{document_id}/ask"]
    assert sent.parent_span_id.hex() == asked.parent_span_id.hex() == _PARENT_ID
    assert _attributes(sent)["http.response.status_code"] == 201
    encode, question = traced["encode"], traced["question"]
    assert encode.parent_span_id == sent.span_id
    assert _attributes(encode) == {"perk.document_id": document["id"], "perk.outcome": "ready"}
    assert question.parent_span_id == asked.span_id
    assert _attributes(question)["perk.completion_tokens"] == 3
    parts = [traced[name] for name in ("adapter", "queue", "decode")]
    assert {part.parent_span_id for part in parts} == {question.span_id}
    # The parts follow one another and fill the question; two clocks are read for each, a little apart.
    for before, after in pairwise(parts):
        assert abs(before.end_time_unix_nano - after.start_time_unix_nano) < 500_000_000
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in spans)
    others = [span for span in spans if span.trace_id.hex() != _TRACE_ID]
    assert "GET unmatched" in {span.name for span in others}
    content = b"".join(collector.bodies)
    assert b"perk-test" in content
    for words in (b"kitchen", b"Where is Mary"):
        assert words not in content


def test_without_an_endpoint_nothing_is_loaded() -> None:
    program = (
        "import json, sys; from service.tracing import open_tracer; tracer = open_tracer();"
        "print(json.dumps([type(tracer).__name__, *(name for name in sys.modules if 'telemetry' in name)]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={"PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(printed.stdout) == ["Untraced"]


def test_an_endpoint_without_the_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delitem(sys.modules, "service.open_telemetry", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with pytest.raises(LoadFailed, match=r"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set, but .* `tracing`"):
        open_tracer()
