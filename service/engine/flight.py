"""One document on its way to its adapter. All who want it wait for the same flight."""

from __future__ import annotations

import asyncio
import time

from service.engine.jobs import EncodeProgress
from service.engine.scheduler import SHORT_CHARACTERS
from service.store.record import DocumentRecord
from service.tracing import SpanPlace

__all__ = ["Flight"]


class Flight:
    """The encode of one document, from the queue to the kept adapter. One event loop owns it.

    Attributes:
        document_id: of the document.
        owner: of the document; owners take turns.
        is_short: it does not wait for the end of a long one.
        created_at: when it got its place in the queue (`time.monotonic`).
        origin: the span of the request that asked for it.
        request_id: of that request, for the log.
        again: it had an adapter before, which is gone: questions wait for it instead of being turned away.
        progress: None until the model has begun.
        task: runs it, once its turn has come.
        lost: another replica has taken it over meanwhile.
    """

    def __init__(
        self, record: DocumentRecord, *, again: bool, origin: SpanPlace | None = None, request_id: str | None = None
    ) -> None:
        self.document_id = record.id
        self.owner = record.owner
        # A character has at least one byte: what is short here is so for the model's thread too.
        self.is_short = record.bytes <= SHORT_CHARACTERS
        self.created_at = time.monotonic()
        self.origin = origin
        self.request_id = request_id
        self.again = again
        self.progress: EncodeProgress | None = None
        self.task: asyncio.Task[None] | None = None
        self.lost = False
        self._begun_at = 0.0
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()

    def update(self, progress: EncodeProgress) -> None:
        """Tell all who wait how far it is."""
        if self.progress is None:
            self._begun_at = time.monotonic()
        self.progress = progress
        self._notify()

    def end(self) -> None:
        """Tell all who wait that it is over: the store knows how it went."""
        self._ended.set()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for more progress, or the end."""
        if not self._ended.is_set():
            await self._changed.wait()

    async def ended(self) -> None:
        """Wait for the end."""
        await self._ended.wait()

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the slices done so far; None before the model has begun."""
        if self.progress is None or self.progress.done == 0:
            return None
        spent = time.monotonic() - self._begun_at
        return spent * (1 - self.progress.done) / self.progress.done
