"""Spans of requests, questions and encodes, for those who have somewhere to send them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from service.errors import LoadFailed

__all__ = ["RequestSpan", "SpanPlace", "Tracer", "Untraced", "open_tracer"]

# OpenTelemetry's own names: either says where spans go.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class SpanPlace(Protocol):
    """A span as a parent of others; nothing but the tracer looks into it."""


class RequestSpan(Protocol):
    """The span of a request that is being answered.

    Attributes:
        trace_id: in hex, as the log names it; None where no one traces.
    """

    trace_id: str | None

    def describe(self, name: str, attributes: Mapping[str, str | int]) -> None:
        """Name it, once it is known what it was."""


class Tracer(Protocol):
    """Takes spans. Times are those of `time.monotonic`; attributes never hold a text, a question or a key."""

    def request(self, headers: Mapping[str, str]) -> AbstractContextManager[RequestSpan]:
        """A span around the answering of a request, a child of the one that its headers name."""

    def here(self) -> SpanPlace | None:
        """The request that is being answered here."""

    def add(
        self, name: str, started: float, ended: float, parent: SpanPlace | None, attributes: Mapping[str, str | int]
    ) -> SpanPlace | None:
        """A span that has ended."""

    def close(self) -> None:
        """Send what has not been sent yet; blocks for some seconds at most."""


class Untraced:
    """The tracer that does nothing, and the span that is none."""

    trace_id: str | None = None

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[RequestSpan]:  # noqa: ARG002 - as `Tracer`
        """As `Tracer.request`."""
        yield self

    def describe(self, name: str, attributes: Mapping[str, str | int]) -> None:
        """As `RequestSpan.describe`."""

    def here(self) -> SpanPlace | None:
        """As `Tracer.here`."""
        return None

    def add(
        self,
        name: str,  # noqa: ARG002 - as `Tracer`
        started: float,  # noqa: ARG002
        ended: float,  # noqa: ARG002
        parent: SpanPlace | None,  # noqa: ARG002
        attributes: Mapping[str, str | int],  # noqa: ARG002
    ) -> SpanPlace | None:
        """As `Tracer.add`."""
        return None

    def close(self) -> None:
        """As `Tracer.close`."""


def open_tracer() -> Tracer:
    """The tracer that the environment asks for.

    Raises:
        LoadFailed: it asks for OpenTelemetry, which is not installed.
    """
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if endpoint is None:
        return Untraced()
    try:
        # An extra of the package, and half a second to import.
        from service.open_telemetry import OpenTelemetry
    except ModuleNotFoundError as error:
        raise LoadFailed(
            f"{endpoint} is set, but {error.name} is not installed (the extra `tracing` has it)"
        ) from error
    return OpenTelemetry()
