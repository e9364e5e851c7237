"""Runs the service in this process until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
import sys
from types import FrameType

import structlog
import uvicorn

from service.app import create_app
from service.engine.engine import Engine
from service.errors import LoadFailed
from service.logging import configure_logs
from service.settings import Settings

__all__ = ["serve"]

_log = structlog.get_logger(__name__)

# For responses to be sent once the last answer has ended or been given up.
_LAST_SECONDS = 10
# Longer than clients and proxies keep an idle connection: who closes it first must not be the server, whose closing
# would meet their next request.
_KEEP_ALIVE_SECONDS = 75


def serve(settings: Settings, host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: of the service.
        host: address to listen on.
        port: to listen on; 0 takes a free one, which the log names.

    Returns:
        Exit status: 0 after a stop that was asked for, 1 where the service could not start.
    """
    configure_logs()
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except (OSError, OverflowError) as error:
        print(f"perk serve: cannot listen on {host} port {port}: {error}", file=sys.stderr)
        return 1
    # Accepted connections inherit it: one whose peer takes nothing for so long is ended by the kernel.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(2000 * settings.body_seconds))
    try:
        return asyncio.run(_run(settings, listener))
    except LoadFailed as error:
        print(f"perk serve: {error}", file=sys.stderr)
        return 1


async def _run(settings: Settings, listener: socket.socket) -> int:
    app = create_app(settings)
    engine: Engine = app.state.engine
    config = uvicorn.Config(
        app,
        # Said outright: whatever else is installed beside the service, it is this parser that reads requests.
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=round(settings.stop_grace_seconds) + _LAST_SECONDS,
    )
    server = _Server(config, engine)
    address, port = listener.getsockname()[:2]
    _log.info("listening", address=address, port=port)
    watch = asyncio.create_task(_stop_where_loading_fails(server, engine))
    try:
        await server.serve(sockets=[listener])
        if watch.done():
            watch.result()
    finally:
        watch.cancel()
    return 0


async def _stop_where_loading_fails(server: _Server, engine: Engine) -> None:
    try:
        await engine.ready()
    except LoadFailed:
        server.should_exit = True
        raise


class _Server(uvicorn.Server):
    """uvicorn, but the engine learns of a signal at once: uvicorn itself first waits for all connections to end."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the base class' signature
        """Stop; a second signal does not wait for what still runs."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._engine.begin_stop)
