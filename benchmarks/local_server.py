"""A server of one's own: started on a free port of the loopback, waited for, stopped.

It is reached as a user reaches it, by its command line and over HTTP, so nothing here imports `service`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["ServerError", "encode_document", "running_server"]

_READY_SECONDS = 600.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.5


class ServerError(Exception):
    """The server did not start, or failed while it was used."""


@contextmanager
def running_server(folder: Path, **settings: str) -> Iterator[httpx.Client]:
    """A server of its own on a free port, keeping its data and log in `folder`; yields a client once it is ready.

    `settings` go before those of the environment, under the same names.

    Raises:
        ServerError: the server ended, or was not ready in time; the message holds the end of its log.
    """
    port = _free_port()
    log = folder / "server.log"
    environment = {**os.environ, "PERK_DATA_DIR": str(folder / "data"), **settings}
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300.0) as client:
            try:
                _wait_until_ready(client, process)
                yield client
            except (ServerError, httpx.HTTPError) as error:
                end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise ServerError(f"{error}\nthe end of the server's log:\n{end}") from error
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def encode_document(client: httpx.Client, text: str) -> str:
    """Send a document and wait until it is ready; returns its id.

    Raises:
        httpx.HTTPStatusError: it was refused.
        ServerError: it could not be encoded.
    """
    while True:
        response = client.post("/documents", json={"text": text}, headers={"Prefer": "wait=60"})
        response.raise_for_status()
        document = response.json()
        if document["status"] == "ready":
            return str(document["id"])
        if document["status"] == "failed":
            raise ServerError(f"{document['id']}: {document['error']}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server ended with exit status {process.returncode}")
        if _is_ready(client):
            return
        time.sleep(_POLL_SECONDS)
    raise ServerError(f"the server was not ready within {_READY_SECONDS:.0f} seconds")


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == httpx.codes.OK
    except httpx.ConnectError:  # not listening yet
        return False
