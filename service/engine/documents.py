"""Takes documents, knows how far each is, and has the adapter of each that is ready."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from torch import Tensor

from perk.perk_model import PerkModel
from perk.segments import normalise
from service.engine.archive import pack_folder
from service.engine.document import Document
from service.engine.encode_queue import EncodeQueue
from service.engine.flight import Flight
from service.engine.model_thread import ModelThread
from service.engine.quotas import Quotas
from service.errors import (
    DocumentFailed,
    DocumentNotFound,
    DocumentNotReady,
    NotReady,
    QueueFull,
    StoreUnavailable,
    TooManyDocuments,
    TooManyTokens,
)
from service.keys import Tenant
from service.metrics import Metrics
from service.store.memory import MemoryTier
from service.store.protocol import DocumentStore, Place
from service.store.record import DocumentRecord

__all__ = ["Documents"]

_ID = re.compile(r"doc_[0-9a-f]{32}")
# Tokens are counted in windows of this many characters, so that a text far too long is refused without reading it all.
_COUNT_WINDOW = 262_144
# A question waits this long for an adapter that has to be encoded again, then its client is asked to come back.
_AGAIN_SECONDS = 30.0

# Of an adapter's time to live that may pass before its use is written down.
_TOUCH_SHARE = 0.1


class Documents:
    """All documents of one configuration. One event loop owns it.

    Attributes:
        model_name: of the base.
        fingerprint: of all that determines an adapter besides the text.
    """

    def __init__(
        self,
        *,
        model: PerkModel,
        thread: ModelThread,
        store: DocumentStore,
        adapters: MemoryTier,
        queue: EncodeQueue,
        token_limit: int,
        waiting_limit: int,
        quotas: Quotas,
        adapter_ttl: int | None,
        metrics: Metrics,
    ) -> None:
        """Put the parts together.

        Args:
            model: of which only names and fingerprint are read here.
            thread: runs the model.
            store: keeps records and texts.
            adapters: keeps adapters, at hand and below.
            queue: encodes what is stored.
            token_limit: longest document.
            waiting_limit: most questions that may wait for adapters to be encoded again.
            quotas: what each tenant has used.
            adapter_ttl: seconds that an adapter is kept after its last use; None: for ever.
            metrics: where documents are counted.
        """
        self.model_name = model.name
        self._checkpoint_name = model.checkpoint_name
        self.fingerprint = model.fingerprint
        self._thread = thread
        self._store = store
        self._adapters = adapters
        self._queue = queue
        self._token_limit = token_limit
        self._waiting_limit = waiting_limit
        self._waiting = 0
        self._quotas = quotas
        # Between counting a tenant's documents and adding one, no other is added.
        self._counting = asyncio.Lock()
        self._adapter_ttl = adapter_ttl
        self._metrics = metrics

    async def take(
        self, text: str, *, title: str | None, metadata: dict[str, Any], tenant: Tenant
    ) -> tuple[Document, bool]:
        """Keep a document and queue it, unless the tenant has it; once this returns, it survives a restart.

        What another tenant has of the same text is not looked at: it is encoded again, so that no one can tell.

        Returns:
            The document, and whether it was ready before.

        Raises:
            InvalidInput: the text cannot be a document.
            TooManyTokens: it is too long.
            TooManyDocuments: the tenant may keep no more.
            TokensSpent: the tenant has too few tokens left.
            QueueFull: too many documents wait.
            StoreError: it cannot be kept.
        """
        canonical = await asyncio.to_thread(normalise, text)
        shared_id, tokens = await self._thread.call(self._measure(canonical))
        document_id = tenant.document_id(shared_id)
        record = None
        # Unknown is not absent; but then it is kept where the store can, and found to be the same later.
        with suppress(StoreUnavailable):
            record = await self._store.find(document_id)
        if record is not None and record.status != "failed":
            self._metrics.documents_received.labels("known").inc()
            return self._document(record), record.status == "ready"
        if tokens > self._token_limit:
            raise TooManyTokens(self._token_limit)
        async with self._place(tenant, tokens):
            record, is_new = await self._store.add(
                DocumentRecord(
                    id=document_id,
                    fingerprint=self.fingerprint,
                    status="queued",
                    title=title,
                    metadata=metadata,
                    bytes=len(canonical.encode()),
                    tokens=tokens,
                    created_at=time.time(),
                    text_id=shared_id,
                    owner=tenant.owner,
                ),
                canonical,
            )
            self._quotas.spend(tenant, tokens)
        self._metrics.documents_received.labels("new" if is_new else "again").inc()
        return self._document(record), False

    @asynccontextmanager
    async def _place(self, tenant: Tenant, tokens: int) -> AsyncIterator[None]:
        """A place for one document more, in the queue and within the tenant's limits."""
        async with self._counting:
            limit = tenant.limits.documents
            if limit is not None and sum((await self._store.counts(owner=tenant.owner)).values()) >= limit:
                raise TooManyDocuments(limit)
            self._quotas.require_tokens(tenant, tokens)
            with self._queue.place():
                yield

    def _measure(self, text: str) -> Callable[[PerkModel], tuple[str, int]]:
        def measure(model: PerkModel) -> tuple[str, int]:
            tokens = 0
            for start in range(0, len(text), _COUNT_WINDOW):
                tokens += model.count_tokens(text[start : start + _COUNT_WINDOW])
                if tokens > self._token_limit:
                    break
            return model.document_id(text), tokens

        return measure

    async def find(self, document_id: str, owner: str) -> Document:
        """A document as it stands.

        Raises:
            DocumentNotFound: there is none, or it is another owner's.
        """
        record = await self._store.find(document_id) if _ID.fullmatch(document_id) else None
        if record is None or record.owner != owner:
            raise DocumentNotFound(document_id)
        return self._document(record)

    async def page(self, limit: int, after: Place | None, owner: str) -> list[Document]:
        """At most `limit` documents of an owner, the newest first, from `after` on."""
        return [self._document(record) for record in await self._store.page(limit, after, owner=owner)]

    async def delete(self, document_id: str, owner: str) -> None:
        """Forget a document; its text and adapter are gone from every tier once this returns.

        Raises:
            DocumentNotFound: there is none, or it is another owner's.
            StoreError: it is still there.
        """
        if not _ID.fullmatch(document_id):
            raise DocumentNotFound(document_id)
        record = await self._store.find(document_id)
        if record is not None and record.owner != owner:
            raise DocumentNotFound(document_id)
        if record is not None:
            self._queue.cancel(document_id)
        # One of another configuration is not found, but deleted all the same.
        found = await self._store.delete(document_id, owner=owner)
        if not found:
            raise DocumentNotFound(document_id)
        self._adapters.forget(document_id)

    async def follow(self, document_id: str, owner: str) -> AsyncIterator[Document]:
        """The document now, and after each slice of its encode, until that ends.

        Raises:
            DocumentNotFound: there is none, or it was deleted meanwhile.
            NotReady: the service stops.
        """
        while True:
            if self._queue.closed:
                raise NotReady("stopping", "the service is stopping")
            document = await self.find(document_id, owner)
            # Before whoever follows takes its time: what is encoded meanwhile must not be queued again.
            flight = None if document.ended else self._queue.add(document.record)
            yield document
            if flight is None:
                return
            await flight.changed()

    async def wait(self, document_id: str, seconds: float, owner: str) -> Document:
        """The document once its encode has ended, or as it stands after `seconds`.

        Raises:
            DocumentNotFound: there is none, or it was deleted meanwhile.
        """
        document = await self.find(document_id, owner)
        # At the end of the time, or of the service, the last state is the answer.
        with suppress(TimeoutError, NotReady):
            async with asyncio.timeout(seconds):
                async for newer in self.follow(document_id, owner):
                    document = newer
        return document

    async def adapter(self, document_id: str, owner: str) -> Tensor:
        """The adapter ``[P]`` of a document that is ready; one that is lost or damaged is encoded again meanwhile.

        Raises:
            DocumentNotFound: there is no such document.
            DocumentNotReady: it is not encoded yet, or not again.
            DocumentFailed: it could not be encoded.
            QueueFull: too many questions wait for adapters.
        """
        deadline = time.monotonic() + _AGAIN_SECONDS
        while True:
            document = await self.find(document_id, owner)
            if document.status == "failed":
                raise DocumentFailed(document_id, document.record.error or "unknown reason")
            if document.status == "ready":
                adapter = await self._kept_adapter(document.record)
                if adapter is not None:
                    return adapter
                await self._store.mark_queued(document_id)
                flight = self._queue.add(document.record, again=True)
                self._metrics.reencodes.inc()
            else:
                # Another replica may have had it queued again.
                flight = self._queue.add(document.record, again=document.record.ready_at is not None)
            if not flight.again or not await self._wait_for(flight, deadline):
                raise DocumentNotReady(document_id, document.status, self._queue.retry_after(document_id))

    async def export(self, document_id: str, owner: str) -> bytes:
        """The adapter as a PEFT folder in a zip archive.

        Raises:
            StorageFull: there is no space to write the folder.
        """
        adapter = await self.adapter(document_id, owner)
        return await pack_folder(lambda folder: self._thread.call(lambda model: model.export_peft(adapter, folder)))

    async def drop_expired(self) -> None:
        """Forget adapters beyond their time; their texts stay, and the next question has them encoded again."""
        for document_id in await self._store.expired(time.time()):
            await self._adapters.drop(document_id, "expired")

    async def counts(self) -> dict[Literal["queued", "encoding", "ready", "failed"], int]:
        """Documents by status."""
        kept = await self._store.counts()
        encoding = min(self._queue.running, kept.get("queued", 0))
        return {
            "queued": kept.get("queued", 0) - encoding,
            "encoding": encoding,
            "ready": kept.get("ready", 0),
            "failed": kept.get("failed", 0),
        }

    def _document(self, record: DocumentRecord) -> Document:
        flight = None
        if record.status == "queued":
            # It has one, unless storing or deleting it was interrupted.
            flight = self._queue.add(record)
        return Document.of(record, flight, model=self.model_name, checkpoint=self._checkpoint_name)

    async def _kept_adapter(self, record: DocumentRecord) -> Tensor | None:
        if record.expires_at is not None and record.expires_at <= time.time():
            await self._adapters.drop(record.id, "expired")
            return None
        adapter = await self._adapters.get(record.id)
        if adapter is not None:
            await self._touch(record)
        return adapter

    async def _touch(self, record: DocumentRecord) -> None:
        """An adapter lives on from its last use; written down now and then, not at every question."""
        if self._adapter_ttl is None or record.expires_at is None:
            return
        expires_at = time.time() + self._adapter_ttl
        if expires_at - record.expires_at > self._adapter_ttl * _TOUCH_SHARE:
            await self._store.touch(record.id, expires_at)

    async def _wait_for(self, flight: Flight, deadline: float) -> bool:
        """Whether the flight ended in time."""
        if self._waiting >= self._waiting_limit:
            raise QueueFull("questions", self._waiting_limit, math.ceil(_AGAIN_SECONDS))
        self._waiting += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await flight.ended()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True
