"""What other replicas do with the same documents, as far as it matters here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from service.engine.encode_queue import EncodeQueue
from service.engine.jobs import EncodeProgress
from service.errors import StoreError
from service.store.memory import MemoryTier
from service.store.redis_leases import News, RedisLeases
from service.store.shared import SharedStore

__all__ = ["Replicas", "encode_progress"]

_log = structlog.get_logger(__name__)

# News come at once but may be missed; a look at the store finds what was.
LOOK_SECONDS = 1.0
_LOOK_FOR_DELETED_SECONDS = 30.0
_PROGRESS = TypeAdapter(EncodeProgress)


class Replicas:
    """Follows the encodes of other replicas, takes over those of one that died, and forgets what others delete."""

    def __init__(
        self,
        store: SharedStore,
        leases: RedisLeases,
        *,
        queue: EncodeQueue,
        adapters: MemoryTier,
        on_deleted: Callable[[str], None],
    ) -> None:
        """Put the parts together.

        Args:
            store: shared with other replicas.
            leases: theirs and ours.
            queue: of this replica.
            adapters: in this replica's memory.
            on_deleted: called with the id of a document that was deleted, here or elsewhere.
        """
        self._store = store
        self._leases = leases
        self._queue = queue
        self._adapters = adapters
        self._on_deleted = on_deleted
        self._look_for_deleted_at = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._store.run())
            group.create_task(self._listen())
            group.create_task(self._look_around())

    async def _listen(self) -> None:
        async for news in self._leases.news():
            try:
                await self._hear(news)
            except StoreError as error:
                _log.warning("news not followed", problem=str(error))

    async def _hear(self, news: News) -> None:
        match news.event:
            case "queued":
                await self._queue_up(news.document_id)
            case "progress" if news.document_id in self._queue.not_here:
                await self._see_progress([news.document_id])
            case "free":
                self._queue.take_back(news.document_id)
            case "ended" if news.document_id in self._queue.not_here:
                record = await self._store.find(news.document_id)
                if record is None or record.status != "queued":
                    self._queue.settle(news.document_id)
            case "deleted":
                self._forget(news.document_id)
            case "missed":
                self._look_for_deleted_at = 0.0

    async def _look_around(self) -> None:
        while True:
            # It is counted and logged where Redis was found to be away.
            with suppress(StoreError):
                await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        before = self._queue.not_here
        queued = await self._store.queued()
        for document_id in queued:
            await self._queue_up(document_id)
        for document_id in before.difference(queued):
            self._queue.settle(document_id)
        leased = await self._see_progress(list(self._queue.not_here))
        for document_id in self._queue.elsewhere.difference(leased):
            self._queue.take_back(document_id)
        if time.monotonic() >= self._look_for_deleted_at:
            held = self._adapters.held
            for document_id in set(held) - await self._store.existing(held):
                self._forget(document_id)
            self._look_for_deleted_at = time.monotonic() + _LOOK_FOR_DELETED_SECONDS

    async def _queue_up(self, document_id: str) -> None:
        if self._queue.find(document_id) is None:
            record = await self._store.find(document_id)
            if record is not None and record.status == "queued":
                self._queue.add(record)

    async def _see_progress(self, document_ids: list[str]) -> set[str]:
        """Take note of how far others are; the documents that someone encodes."""
        found = await self._leases.progress(document_ids)
        for document_id, values in found.items():
            if values is not None and (progress := encode_progress(values)) is not None:
                self._queue.follow(document_id, progress)
        return set(found)

    def _forget(self, document_id: str) -> None:
        self._queue.cancel(document_id)
        self._store.forget(document_id)
        self._adapters.forget(document_id)
        self._on_deleted(document_id)


def encode_progress(values: dict[str, Any]) -> EncodeProgress | None:
    """What another replica tells of the encode of one document; None where that makes no sense."""
    try:
        progress = _PROGRESS.validate_python(values)
    except ValidationError:
        return None
    is_sane = len(progress.tokens) == len(progress.segments) == 1 and 0 <= progress.done <= 1
    return progress if is_sane else None
