"""Many documents at once: some are sent ahead, and one that is refused stops no other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.client import Busy, Refused

__all__ = ["DocumentClient", "Encoded", "Source", "encode_all", "find_sources"]

# Sent and not yet ready: enough for the service to encode short ones together, few beside its queue.
_AHEAD = 8


class DocumentClient(Protocol):
    """Where documents are encoded: a running service, or a store."""

    def send(self, text: str, title: str) -> dict[str, Any]:
        """Send a document; returns the document object.

        Raises:
            Busy: there is no place for it just now.
            Refused: it cannot be a document.
        """

    def follow(self, document_id: str) -> Iterator[dict[str, Any]]:
        """Document objects while it is encoded; the last is ready or failed.

        Raises:
            Refused: it is gone.
        """


@dataclass(frozen=True)
class Source:
    """A file and the title of its document."""

    path: Path
    title: str


@dataclass(frozen=True)
class Encoded:
    """How one file has ended.

    Attributes:
        source: the file.
        document: the document object, or None where the file was not taken.
        known: whether it was encoded before.
        problem: why the file was not taken, or could not be encoded.
    """

    source: Source
    document: dict[str, Any] | None = None
    known: bool = False
    problem: str | None = None


def find_sources(paths: Sequence[Path], glob: str) -> list[Source]:
    """The files among `paths`, and those of its folders that match `glob`, each once, in order.

    Titles are names of files; those from a folder say where within it they are.
    """
    found: dict[Path, Source] = {}
    for path in paths:
        if path.is_dir():
            matches = sorted(match for match in path.glob(glob) if match.is_file())
            sources = [Source(match, match.relative_to(path).as_posix()) for match in matches]
        else:
            sources = [Source(path, path.name)]
        for source in sources:
            found.setdefault(source.path.resolve(), source)
    return list(found.values())


def encode_all(
    client: DocumentClient, sources: Sequence[Source], report: Callable[[Source, float], None]
) -> Iterator[Encoded]:
    """Encode files, and say of each how it ended, in the order of `sources`.

    What is encoded already is known by its text: after a stop, the same call goes on where it was.

    Args:
        client: sends them.
        sources: the files.
        report: told how far a file is, 0 to 1.

    Raises:
        ClientError: the service cannot be reached (any more).
    """
    waiting: deque[Encoded] = deque()
    for source in sources:
        while len(waiting) >= _AHEAD:
            yield _wait(client, waiting.popleft(), report)
        sent: Encoded | None = None
        while sent is None:
            try:
                sent = _send(client, source)
            except Busy as busy:
                if waiting:
                    yield _wait(client, waiting.popleft(), report)
                else:
                    # Others fill the queue: the service knows best when to come back.
                    time.sleep(busy.retry_after)
        report(source, 0.0)
        waiting.append(sent)
    while waiting:
        yield _wait(client, waiting.popleft(), report)


def _send(client: DocumentClient, source: Source) -> Encoded:
    try:
        text = source.path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return Encoded(source, problem=f"not UTF-8 at byte {error.start}")
    except OSError as error:
        return Encoded(source, problem=error.strerror or type(error).__name__)
    try:
        document = client.send(text, source.title)
    except Busy:
        raise
    except Refused as refusal:
        return Encoded(source, problem=str(refusal))
    return Encoded(source, document, known=document["status"] == "ready")


def _wait(client: DocumentClient, sent: Encoded, report: Callable[[Source, float], None]) -> Encoded:
    document = sent.document
    if document is None or sent.known:
        return sent
    try:
        for newer in client.follow(document["id"]):
            report(sent.source, newer["progress"])
            document = newer
    except Refused as refusal:
        # Deleted meanwhile.
        return Encoded(sent.source, problem=str(refusal))
    problem = document.get("error") or "it could not be encoded" if document["status"] == "failed" else None
    return Encoded(sent.source, document, problem=problem)
