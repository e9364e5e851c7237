"""Redis as this replica uses it: with an outbox on its own disk for what Redis cannot take just now."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from torch import Tensor

from service.errors import LeaseLost, StoreError, StoreUnavailable
from service.metrics import Metrics
from service.store.disk import DiskStore
from service.store.protocol import Claim, Place, Readiness
from service.store.record import DocumentRecord
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection
from service.store.redis_leases import RedisLeases

__all__ = ["SharedStore"]

_log = structlog.get_logger(__name__)

# Records seen last, for questions while Redis is away; a record is about a kilobyte.
_RECORDS_AT_HAND = 10_000
_PAUSE_SECONDS = 1.0


class SharedStore:
    """`DocumentStore`, `AdapterTier` and `Leases`: Redis, and while that is away, an outbox. One event loop owns it.

    While Redis is away, new documents are kept, encoded and answered from the outbox, and documents known before as far
    as memory has their adapters. What is in the outbox goes to Redis once it is back. Deleting and listing need Redis:
    half a list, or a document that comes back, would be worse than an error.
    """

    def __init__(
        self,
        connection: RedisConnection,
        redis: RedisStore,
        leases: RedisLeases,
        outbox: DiskStore,
        *,
        limit: int,
        metrics: Metrics,
    ) -> None:
        """Put the parts together.

        Args:
            connection: to Redis.
            redis: the store there.
            leases: there.
            outbox: a store on this replica's disk.
            limit: most documents in the outbox.
            metrics: where documents in the outbox are counted.
        """
        self._connection = connection
        self._redis = redis
        self._leases = leases
        self._outbox = outbox
        self._limit = limit
        self._own: set[str] = set()
        self._encoding: set[str] = set()
        self._records: OrderedDict[str, DocumentRecord] = OrderedDict()
        self._something_to_move = asyncio.Event()
        metrics.outbox_documents.set_function(lambda: len(self._own))

    async def open(self) -> None:
        """Look at what the outbox holds from before.

        Raises:
            StoreError: Redis will not have us, or the outbox cannot be read.
        """
        await self._connection.open()
        self._own.update(await self._outbox.ids())
        self._something_to_move.set()

    def close(self) -> None:
        """Close the outbox."""
        self._outbox.close()

    @property
    def has_space(self) -> bool:
        """Whether an adapter more would fit; what Redis has room for shows when it is written."""
        return self._connection.available or self._outbox.has_space

    @property
    def degraded(self) -> str | None:
        """What is not as it should be; None where Redis answers."""
        if self._connection.available:
            return None
        return f"Redis is away: {len(self._own)} of at most {self._limit} documents wait in the outbox"

    async def add(self, record: DocumentRecord, text: str) -> tuple[DocumentRecord, bool]:
        """As `DocumentStore.add`; in the outbox where Redis is away."""
        if record.id not in self._own:
            try:
                return await self._redis.add(record, text)
            except StoreUnavailable:
                if len(self._own) >= self._limit:
                    raise StoreUnavailable(
                        f"Redis is away, and {self._limit} documents wait for it already, and no more may"
                        " (PERK_QUEUE_LIMIT)"
                    ) from None
        # Before it is written: two that come at once must not both take the last place.
        self._own.add(record.id)
        try:
            return await self._outbox.add(record, text)
        except StoreError:
            if await self._outbox.find(record.id) is None:
                self._own.discard(record.id)
            raise

    async def find(self, document_id: str) -> DocumentRecord | None:
        """As `DocumentStore.find`.

        Raises:
            StoreUnavailable: Redis is away, and the document is not known here.
        """
        if document_id in self._own:
            return await self._outbox.find(document_id)
        try:
            record = await self._redis.find(document_id)
        except StoreUnavailable:
            if document_id not in self._records:
                raise
            return self._records[document_id]
        self._remember(document_id, record)
        return record

    async def page(self, limit: int, after: Place | None, *, owner: str = "") -> list[DocumentRecord]:
        """As `DocumentStore.page`; needs Redis."""
        found = {record.id: record for record in await self._redis.page(limit, after, owner=owner)}
        if self._own:
            found |= {record.id: record for record in await self._outbox.page(limit, after, owner=owner)}
        newest_first = sorted(found.values(), key=lambda record: (record.created_at, record.id), reverse=True)
        return newest_first[:limit]

    async def queued(self) -> list[str]:
        """As `DocumentStore.queued`; while Redis is away, those of the outbox."""
        own = await self._outbox.queued() if self._own else []
        try:
            shared = await self._redis.queued()
        except StoreUnavailable:
            return own
        return list(dict.fromkeys([*shared, *own]))

    async def text(self, document_id: str) -> str | None:
        """As `DocumentStore.text`."""
        return await self._place(document_id).text(document_id)

    async def counts(self, *, owner: str | None = None) -> dict[str, int]:
        """As `DocumentStore.counts`; needs Redis."""
        counts = await self._redis.counts(owner=owner)
        if self._own:
            for status, count in (await self._outbox.counts(owner=owner)).items():
                counts[status] = counts.get(status, 0) + count
        return counts

    async def mark_queued(self, document_id: str) -> None:
        """As `DocumentStore.mark_queued`."""
        await self._place(document_id).mark_queued(document_id)

    async def mark_ready(self, document_id: str, readiness: Readiness) -> None:
        """As `DocumentStore.mark_ready`."""
        await self._place(document_id).mark_ready(document_id, readiness)

    async def mark_failed(self, document_id: str, error: str) -> None:
        """As `DocumentStore.mark_failed`."""
        await self._place(document_id).mark_failed(document_id, error)

    async def touch(self, document_id: str, expires_at: float) -> None:
        """As `DocumentStore.touch`; while Redis is away, this replica alone knows."""
        try:
            await self._place(document_id).touch(document_id, expires_at)
        except StoreUnavailable:
            if (record := self._records.get(document_id)) is not None:
                self._remember(document_id, replace(record, expires_at=expires_at))

    async def delete(self, document_id: str, *, owner: str = "") -> bool:
        """As `DocumentStore.delete`; needs Redis."""
        found = await self._redis.delete(document_id, owner=owner)
        self._records.pop(document_id, None)
        if document_id in self._own and await self._outbox.delete(document_id, owner=owner):
            self._own.discard(document_id)
            found = True
        return found

    async def expired(self, now: float) -> list[str]:
        """As `DocumentStore.expired`: those of the outbox, Redis drops its own."""
        return await self._outbox.expired(now) if self._own else []

    async def get(self, document_id: str) -> Tensor | None:
        """As `AdapterTier.get`."""
        return await self._place(document_id).get(document_id)

    async def put(self, document_id: str, adapter: Tensor) -> Tensor:
        """As `AdapterTier.put`."""
        return await self._place(document_id).put(document_id, adapter)

    async def drop(self, document_id: str, reason: str) -> None:
        """As `AdapterTier.drop`."""
        await self._place(document_id).drop(document_id, reason)

    async def existing(self, document_ids: list[str]) -> set[str]:
        """Those of some documents that have not been deleted."""
        return self._own.intersection(document_ids) | await self._redis.existing(document_ids)

    def forget(self, document_id: str) -> None:
        """Another replica has deleted the document."""
        self._records.pop(document_id, None)

    async def take(self, document_id: str, on_lost: Callable[[], None]) -> Claim:
        """As `Leases.take`; what is in the outbox no one else can have."""
        if document_id in self._own:
            record = await self._outbox.find(document_id)
            if record is None or record.status != "queued":
                return "over"
            self._encoding.add(document_id)
            return "taken"
        try:
            return await self._leases.take(document_id, on_lost)
        except StoreUnavailable:
            return "elsewhere"

    async def release(self, document_id: str) -> None:
        """As `Leases.release`."""
        self._encoding.discard(document_id)
        await self._leases.release(document_id)

    def tell(self, document_id: str, progress: Mapping[str, Any]) -> None:
        """As `Leases.tell`."""
        self._leases.tell(document_id, progress)

    async def run(self) -> None:
        """Find Redis again whenever it goes away, and then move the outbox there; until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._connection.watch(self._something_to_move.set))
            group.create_task(self._move())

    async def _move(self) -> None:
        while True:
            await self._something_to_move.wait()
            self._something_to_move.clear()
            while self._own and self._connection.available:
                for document_id in list(self._own - self._encoding):
                    try:
                        await self._move_document(document_id)
                    except StoreError as error:
                        _log.warning("outbox waits", document_id=document_id, problem=str(error))
                        break
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _move_document(self, document_id: str) -> None:
        record, text = await self._outbox.find(document_id), await self._outbox.text(document_id)
        if record is not None and text is not None:
            cleared: dict[str, Any] = dict.fromkeys(("segments", "ready_at", "expires_at", "encode", "error"))
            # No one is to encode what comes with its adapter.
            token = secrets.token_hex(16) if record.status == "ready" else ""
            await self._redis.add(replace(record, status="queued", **cleared), text, token=token)
            if token:
                await self._move_adapter(record, token)
        if document_id in self._encoding:
            # Its encode began meanwhile, and ends here or there: the next look finds out.
            return
        self._own.discard(document_id)
        if record is not None:
            await self._outbox.delete(document_id, owner=record.owner)
        _log.info("moved from the outbox", document_id=document_id)

    async def _move_adapter(self, record: DocumentRecord, token: str) -> None:
        packed = await self._outbox.packed(record.id)
        if packed is None or record.ready_at is None or record.segments is None or record.encode is None:
            return
        if await self._leases.take(record.id, lambda: None, token=token) != "taken":
            # Another replica has had the same text: its adapter is this one.
            return
        try:
            await self._redis.put_packed(record.id, packed)
            readiness = Readiness(record.tokens, record.segments, record.ready_at, record.expires_at, record.encode)
            await self._redis.mark_ready(record.id, readiness)
        except LeaseLost:
            _log.info("encoded elsewhere", document_id=record.id)
        finally:
            await self._leases.release(record.id)

    def _place(self, document_id: str) -> DiskStore | RedisStore:
        return self._outbox if document_id in self._own else self._redis

    def _remember(self, document_id: str, record: DocumentRecord | None) -> None:
        self._records.pop(document_id, None)
        if record is not None:
            self._records[document_id] = record
            if len(self._records) > _RECORDS_AT_HAND:
                self._records.popitem(last=False)
