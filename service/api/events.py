"""Server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import StreamingResponse

from perk.errors import PerkError
from service.api.problems import as_problem
from service.errors import ServiceError
from service.logging import describe_error

__all__ = ["Event", "event_response"]

_log = structlog.get_logger(__name__)

Event = tuple[str, Mapping[str, Any]]
"""Name and data of an event."""

# Proxies close connections on which nothing comes.
_KEEP_ALIVE_SECONDS = 15.0


def event_response(request: Request, events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """A stream of events; an error within it becomes a last event ``error`` with the problem document.

    The generator is closed when its client goes away.
    """
    return StreamingResponse(
        _lines(request, events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _lines(request: Request, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
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
                    return
                pending = None
                yield _format(*event)
        except (PerkError, ServiceError) as error:
            yield _format("error", as_problem(error).body(request.url.path))
        except Exception as error:  # noqa: BLE001 - a bug; the client has its status already, but not yet an end
            _log.error("events failed", **describe_error(error))
            yield _format("error", as_problem(error).body(request.url.path))
        finally:
            if pending is not None and not pending.done():
                pending.cancel()
                await asyncio.wait({pending})


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    """The next event; None after the last."""
    return await anext(events, None)


def _format(name: str, data: Mapping[str, Any]) -> bytes:
    # JSON on one line: a line break within the data would end the field.
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
