"""Clients that send or read slowly: they are ended, and hold up no one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.api.events import Event, event_response

_PATIENCE_SECONDS = 30.0
_MANY = 60


@pytest.fixture
def impatient(start_service: Callable[..., Any]) -> Any:
    """A service that waits half a second for a body."""
    return start_service(body_seconds=0.5).until_ready()


def _begin(service: Any, path: str, kind: str, length: int) -> socket.socket:
    """A request whose body does not come."""
    host, port = service.address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=_PATIENCE_SECONDS)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def _read_to_the_end(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(4096):
        received += piece
    return received


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/documents", "text/plain"),
        ("/documents", "application/json"),
        ("/documents", "multipart/form-data; boundary=x"),
        (f"/documents/doc_{'0' * 32}/ask", "application/json"),
        ("/v1/chat/completions", "application/json"),
    ],
)
def test_a_body_that_stops_coming_is_told_and_its_connection_closed(impatient: Any, path: str, kind: str) -> None:
    with _begin(impatient, path, kind, 1000) as connection:
        connection.sendall(b"{")
        answer = _read_to_the_end(connection)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"PERK_BODY_SECONDS" in answer


def test_a_body_that_trickles_is_ended_too(impatient: Any) -> None:
    with _begin(impatient, "/documents", "text/plain", 100_000) as connection:
        connection.settimeout(0.05)
        sent, answer = 0, b""
        # A byte every twentieth of a second is no pause, but would take more than an hour.
        while not answer and sent < 20 * _PATIENCE_SECONDS:
            connection.sendall(b"x")
            sent += 1
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_many_slow_clients_hold_up_no_one(start_service: Callable[..., Any], story: str) -> None:
    service = start_service(body_seconds=3600).until_ready()
    document = service.encode(story)
    with ExitStack() as slow:
        for number in range(_MANY):
            path = ("/documents", f"/documents/{document['id']}/ask")[number % 2]
            slow.enter_context(_begin(service, path, "application/json", 1000)).sendall(b"{")

        asked = service.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?", "max_tokens": 2})
        assert asked.status_code == 200
        assert service.encode("sent between slow clients")["status"] == "ready"
        assert service.client.get("/ready").status_code == 200
    # Gone, they leave nothing that runs.
    service.until(lambda: service.metric('perk_requests_total{method="POST",route="/documents",status="499"}') > 0)


def test_a_stream_that_no_one_reads_ends_and_frees_what_it_holds(impatient: Any) -> None:
    closed = False

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal closed
        try:
            while True:
                yield "token", {"text": "more"}
        finally:
            closed = True

    async def scenario() -> None:
        app = FastAPI()
        app.state.settings = impatient.settings
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "app": app}
        bodies = 0

        async def send(message: Message) -> None:
            nonlocal bodies
            if message["type"] == "http.response.body":
                bodies += 1
                if bodies == 3:
                    # The buffers of the connection are full, and stay so.
                    await asyncio.Event().wait()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async with asyncio.timeout(_PATIENCE_SECONDS):
            with pytest.raises(ClientDisconnect):
                await event_response(Request(scope), events())(scope, receive, send)

    asyncio.run(scenario())
    assert closed
