"""A client of a running service, for the command line."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

__all__ = ["Busy", "Client", "ClientError", "Refused"]

# To connect, and between two pieces of a response. A stream sends something every 15 seconds, but an answer that is
# not streamed may wait for an adapter and for other answers.
_TIMEOUT = httpx.Timeout(connect=10, read=300, write=60, pool=10)
_PAGE = 100


class ClientError(Exception):
    """The service cannot be reached, or has refused; the message is its own."""


class Refused(ClientError):
    """The service has refused this one request; others may go well."""


class Busy(Refused):
    """It has no place for it just now.

    Attributes:
        retry_after: seconds after which it is likely to have one.
    """

    def __init__(self, reason: str, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Client:
    """Talks to one service; a context manager."""

    def __init__(self, server: str, key: str | None) -> None:
        """Connect lazily.

        Args:
            server: address of the service.
            key: its API key, where it wants one.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._server = server
        self._http = httpx.Client(base_url=server, headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def send(self, text: str, title: str) -> dict[str, Any]:
        """Send a document; returns the document object."""
        return self._json("POST", "/documents", json={"text": text, "title": title})

    def follow(self, document_id: str) -> Iterator[dict[str, Any]]:
        """Document objects while it is encoded; the last is ready or failed."""
        for _, document in self._events("GET", f"/documents/{document_id}/events"):
            yield document

    def show(self, document_id: str) -> dict[str, Any]:
        """The document object."""
        return self._json("GET", f"/documents/{document_id}")

    def documents(self) -> Iterator[dict[str, Any]]:
        """All document objects, the newest first."""
        parameters: dict[str, Any] = {"limit": _PAGE}
        while True:
            page = self._json("GET", "/documents", params=parameters)
            yield from page["data"]
            if page["next_cursor"] is None:
                return
            parameters["cursor"] = page["next_cursor"]

    def delete(self, document_id: str) -> None:
        """Delete a document."""
        with self._sent("DELETE", f"/documents/{document_id}"):
            return

    def ask(self, document_id: str, question: str, *, max_tokens: int, temperature: float) -> dict[str, Any]:
        """Ask; returns the answer object."""
        body = {"question": question, "max_tokens": max_tokens, "temperature": temperature}
        return self._json("POST", f"/documents/{document_id}/ask", json=body)

    def ask_streaming(self, document_id: str, question: str, *, max_tokens: int, temperature: float) -> Iterator[str]:
        """Ask; pieces of the answer as they come."""
        body = {"question": question, "max_tokens": max_tokens, "temperature": temperature, "stream": True}
        for name, data in self._events("POST", f"/documents/{document_id}/ask", json=body):
            if name == "token":
                yield data["text"]

    def export(self, document_id: str, folder: Path) -> list[Path]:
        """Write the adapter as a PEFT folder; returns its files."""
        with self._sent("GET", f"/documents/{document_id}/adapter") as response:
            content = response.read()
        try:
            archive = zipfile.ZipFile(io.BytesIO(content))
        except zipfile.BadZipFile:
            raise ClientError(f"{self._server} has sent no zip archive: is it this service?") from None
        folder.mkdir(parents=True, exist_ok=True)
        with archive:
            # `extract` keeps every name within the folder, whatever the archive says.
            return [Path(archive.extract(name, folder)) for name in archive.namelist()]

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._sent(method, path, **options) as response:
            response.read()
            try:
                body: dict[str, Any] = response.json()
            except ValueError:
                raise ClientError(f"{self._server} has sent no JSON: is it this service?") from None
            return body

    def _events(self, method: str, path: str, **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._sent(method, path, **options) as response:
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data = json.loads(value)
                    if name == "error":
                        raise Refused(data["detail"])
                    yield name, data

    @contextmanager
    def _sent(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, path, **options) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx.ConnectError as error:
            raise ClientError(f"{self._server} cannot be reached ({error}); `perk serve` starts a service") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClientError(f"{self._server} does not answer: {error or type(error).__name__}") from error


def _refusal(response: httpx.Response) -> ClientError:
    reason = _reason(response)
    match response.status_code:
        case 429 if response.headers.get("retry-after", "").isdecimal():
            return Busy(reason, int(response.headers["retry-after"]))
        case 401 | 403 | 503:
            # Of every other request too.
            return ClientError(reason)
        case _:
            return Refused(reason)


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code} {response.reason_phrase}"
