"""Many documents through a running service: some are sent ahead, and one that is refused stops no other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.client import Busy, Client, Refused

__all__ = ["Encoded", "Source", "encode_all", "find_sources"]

# Sent and not yet ready: enough for the service to encode short ones together, few beside its queue.
_AHEAD = 8


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
        known: whether the service had it encoded before.
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


def encode_all(client: Client, sources: Sequence[Source], report: Callable[[Source, float], None]) -> Iterator[Encoded]:
    """Encode files, and say of each how it ended, in the order of `sources`.

    What the service has encoded already it knows by its text: after a stop, the same call goes on where it was.

    Args:
        client: of the service.
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


def _send(client: Client, source: Source) -> Encoded:
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


def _wait(client: Client, sent: Encoded, report: Callable[[Source, float], None]) -> Encoded:
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
