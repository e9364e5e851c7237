"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from perk.errors import PerkError
from service.api.engine import settings_of
from service.api.problems import as_problem, is_openai_path
from service.errors import ServiceError
from service.logging import describe_error

__all__ = ["Event", "event_response"]

_log = structlog.get_logger(__name__)

Event = tuple[str, Mapping[str, Any]]
"""Name and data of an event."""

# Proxies close connections on which nothing comes.
_KEEP_ALIVE_SECONDS = 15.0


def event_response(request: Request, events: AsyncGenerator[Event, None], *, last: bytes = b"") -> StreamingResponse:
    """A stream of events; an error within it becomes a last event ``error`` with the problem document.

    On OpenAI's paths it becomes their error object. The generator is closed when its client goes away, or does not read
    for as long as the settings allow.

    Args:
        request: that is answered.
        events: those without a name are sent as data alone.
        last: sent after the last of them, unless there was an error.
    """
    return _EventResponse(
        _lines(request, events, last),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        patience=settings_of(request).body_seconds,
    )


class _EventResponse(StreamingResponse):
    """A stream whose reader has to read."""

    def __init__(self, content: AsyncGenerator[bytes, None], *, patience: float, **options: Any) -> None:
        super().__init__(content, **options)
        self._lines = content
        self._patience = patience

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._patience):
                await send(message)

        try:
            async with aclosing(self._lines):
                await super().stream_response(send_in_time)
        except TimeoutError:
            raise ClientDisconnect from None


async def _lines(request: Request, events: AsyncGenerator[Event, None], last: bytes) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        pending: asyncio.Task[Event | None] | None = None
        try:
            while True:
                pending = pending or asyncio.create_task(_next(events))
                await asyncio.wait({pending}, timeout=_KEEP_ALIVE_SECONDS)
                if not pending.done():
                    yield b": still here\n\n"
                    continue
                event = pending.result()
                if event is None:
                    if last:
                        yield last
                    return
                pending = None
                yield _format(*event)
        except (PerkError, ServiceError) as error:
            yield _format_error(request, error)
        except Exception as error:  # noqa: BLE001 - a bug; the client has its status already, but not yet an end
            _log.error("events failed", **describe_error(error))
            yield _format_error(request, error)
        finally:
            if pending is not None and not pending.done():
                pending.cancel()
                await asyncio.wait({pending})


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    """The next event; None after the last."""
    return await anext(events, None)


def _format(name: str, data: Mapping[str, Any]) -> bytes:
    # JSON on one line: a line break within the data would end the field.
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _format_error(request: Request, error: Exception) -> bytes:
    problem = as_problem(error)
    if is_openai_path(request):
        return _format("", problem.openai_body())
    return _format("error", problem.body(request.url.path))
