"""Every request leaves a line in the log and a count in the metrics, and no error leaves without an answer."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import as_problem, problem_response
from service.logging import describe_error
from service.metrics import Metrics
from service.tracing import RequestSpan, Tracer

__all__ = ["Observe"]

_log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
# As nginx notes a client that went away; no client ever sees it.
_CLIENT_GONE = 499


class Observe:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request, and note how."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        with self._tracer.request(headers) as span:
            if span.trace_id is not None:
                structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
            await self._answer(scope, receive, send, request_id, span)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str, span: RequestSpan) -> None:
        started = time.monotonic()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - a bug; its message may quote a text and must not reach the log
            _log.error("request failed", **describe_error(error))
            if status is None:
                await problem_response(Request(scope), as_problem(error))(scope, receive, send_with_id)
        finally:
            self._note(scope, status or _CLIENT_GONE, time.monotonic() - started, span)

    def _note(self, scope: Scope, status: int, seconds: float, span: RequestSpan) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = _route(scope)
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        document_id = scope.get("path_params", {}).get("document_id")
        ids = {} if document_id is None else {"document_id": document_id[:64]}
        attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        span.describe(f"{method} {route}", attributes)
        _log.info("request", method=method, route=route, status=status, seconds=round(seconds, 4), **ids)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """Template of the path, never the path itself."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "unmatched"
