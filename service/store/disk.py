"""The embedded store: a folder with an index and a file an adapter."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from torch import Tensor

from service.errors import StorageFull, StoreError
from service.metrics import Metrics
from service.store.adapter_files import AdapterFiles
from service.store.adapter_format import AdapterFormat, DamagedAdapter
from service.store.index import DocumentIndex
from service.store.protocol import Place, Readiness
from service.store.record import DocumentRecord

__all__ = ["DataDirectory", "DiskStore"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class DataDirectory:
    """A folder that this process alone writes to while it is open."""

    def __init__(self, path: Path) -> None:
        """Make the folder where there is none, and lock it.

        Raises:
            StoreError: it cannot be written, or another process has it.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"PERK_DATA_DIR: {str(path)!r} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(f"PERK_DATA_DIR: {str(path)!r} is in use by another process") from error

    def close(self) -> None:
        """Leave the folder to others."""
        os.close(self._lock)


class DiskStore:
    """`DocumentStore` and `AdapterTier` of one fingerprint in a data directory.

    Documents of other fingerprints lie there unseen, and come back with their configuration.
    """

    def __init__(
        self,
        directory: DataDirectory,
        *,
        fingerprint: str,
        adapter_size: int,
        metrics: Metrics,
        adapter_format: AdapterFormat | None = None,
    ) -> None:
        """Open the store and remove what a killed process has left half-written.

        Args:
            directory: where it lies.
            fingerprint: of the documents that are seen.
            adapter_size: P, the number of elements of an adapter.
            metrics: where dropped adapters are counted.
            adapter_format: how adapters are written; None: exactly.

        Raises:
            StoreError: the index is damaged or of a later release.
        """
        self._fingerprint = fingerprint
        self._metrics = metrics
        self._format = adapter_format or AdapterFormat(size=adapter_size, fingerprint=fingerprint)
        self._index = DocumentIndex(directory.path / "documents.sqlite")
        self._files = AdapterFiles(directory.path / "adapters", self._format)
        self._files.clean(keep=self._index.ids_with_adapter())
        metrics.tier_bytes.labels("disk").set_function(lambda: self._files.total_bytes)

    @property
    def has_space(self) -> bool:
        """Whether an adapter more would fit on the disk."""
        return self._files.has_space

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    async def add(self, record: DocumentRecord, text: str) -> tuple[DocumentRecord, bool]:
        """As `DocumentStore.add`."""
        return await asyncio.to_thread(self._index.add, record, text)

    async def find(self, document_id: str) -> DocumentRecord | None:
        """As `DocumentStore.find`."""
        record = await asyncio.to_thread(self._index.find, document_id)
        return record if record is not None and record.fingerprint == self._fingerprint else None

    async def page(self, limit: int, after: Place | None, *, owner: str = "") -> list[DocumentRecord]:
        """As `DocumentStore.page`."""
        return await asyncio.to_thread(self._index.page, self._fingerprint, owner, limit, after)

    async def ids(self) -> list[str]:
        """Ids of all documents of this fingerprint, whoever owns them."""
        return await asyncio.to_thread(self._index.ids, self._fingerprint)

    async def queued(self) -> list[str]:
        """As `DocumentStore.queued`."""
        return await asyncio.to_thread(self._index.queued, self._fingerprint)

    async def text(self, document_id: str) -> str | None:
        """As `DocumentStore.text`."""
        return await asyncio.to_thread(self._index.text, document_id)

    async def counts(self, *, owner: str | None = None) -> dict[str, int]:
        """As `DocumentStore.counts`."""
        return await asyncio.to_thread(self._index.counts, self._fingerprint, owner)

    async def mark_queued(self, document_id: str) -> None:
        """As `DocumentStore.mark_queued`."""
        await asyncio.to_thread(self._index.mark_queued, document_id)

    async def mark_ready(self, document_id: str, readiness: Readiness) -> None:
        """As `DocumentStore.mark_ready`."""
        await asyncio.to_thread(self._index.mark_ready, document_id, readiness)

    async def mark_failed(self, document_id: str, error: str) -> None:
        """As `DocumentStore.mark_failed`."""
        await asyncio.to_thread(self._index.mark_failed, document_id, error)

    async def delete(self, document_id: str, *, owner: str = "") -> bool:
        """As `DocumentStore.delete`."""
        return await asyncio.to_thread(self._delete, document_id, owner)

    async def expired(self, now: float) -> list[str]:
        """As `DocumentStore.expired`."""
        return await asyncio.to_thread(self._index.expired, self._fingerprint, now)

    async def get(self, document_id: str) -> Tensor | None:
        """As `AdapterTier.get`; a damaged file is dropped and counted."""
        return await asyncio.to_thread(self._get, document_id)

    async def touch(self, document_id: str, expires_at: float) -> None:
        """As `DocumentStore.touch`."""
        await asyncio.to_thread(self._index.touch, document_id, expires_at)

    async def packed(self, document_id: str) -> bytes | None:
        """The adapter as it is written, checked; None where there is none."""
        return await asyncio.to_thread(self._packed, document_id)

    async def put(self, document_id: str, adapter: Tensor) -> Tensor:
        """As `AdapterTier.put`."""
        return await asyncio.to_thread(self._put, document_id, adapter)

    async def drop(self, document_id: str, reason: str) -> None:
        """As `AdapterTier.drop`."""
        await asyncio.to_thread(self._drop, document_id, reason)

    def _delete(self, document_id: str, owner: str) -> bool:
        # The index first: were the process killed between the two, the next start removes a file that no one names.
        try:
            deleted = self._index.delete(document_id, owner)
        except StorageFull:
            # Deleting must work on a full disk above all, and SQLite needs space to delete: the adapter's makes room.
            record = self._index.find(document_id)
            if record is None or record.owner != owner:
                return False
            self._files.remove(document_id)
            deleted = self._index.delete(document_id, owner)
        if deleted:
            self._files.remove(document_id)
        return deleted

    def _get(self, document_id: str) -> Tensor | None:
        return self._read(document_id, self._files.read)

    def _packed(self, document_id: str) -> bytes | None:
        return self._read(document_id, self._files.read_packed)

    def _read(self, document_id: str, read: Callable[[str, str], T]) -> T | None:
        sha256 = self._index.checksum(document_id)
        if sha256 is None:
            return None
        try:
            return read(document_id, sha256)
        except DamagedAdapter as damage:
            _log.warning("adapter damaged", document_id=document_id, reason=damage.reason)
            self._drop(document_id, damage.reason)
            return None

    def _put(self, document_id: str, adapter: Tensor) -> Tensor:
        sha256 = self._files.write(document_id, adapter)
        if not self._index.set_checksum(document_id, sha256):
            # Deleted while it was being written.
            self._files.remove(document_id)
        return self._format.settle(adapter)

    def _drop(self, document_id: str, reason: str) -> None:
        self._index.drop_checksum(document_id)
        self._files.remove(document_id)
        self._metrics.adapters_dropped.labels(reason).inc()
