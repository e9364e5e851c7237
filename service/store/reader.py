"""Reading a store that another process writes to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog
from torch import Tensor

from service.errors import StoreError
from service.metrics import Metrics
from service.settings import Settings
from service.store.adapter_files import AdapterFiles
from service.store.adapter_format import AdapterFormat, DamagedAdapter
from service.store.index import DocumentIndex
from service.store.record import DocumentRecord
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection

__all__ = ["StoreReader", "open_reader"]

_log = structlog.get_logger(__name__)


class StoreReader(Protocol):
    """The documents of one fingerprint. Every method raises `StoreError` where the store cannot be read."""

    async def find(self, document_id: str) -> DocumentRecord | None:
        """The record of a document, whoever owns it."""

    async def get(self, document_id: str) -> Tensor | None:
        """The adapter ``[P]`` of a document, checked; None where there is none."""


@asynccontextmanager
async def open_reader(
    settings: Settings, adapter_format: AdapterFormat, fingerprint: str
) -> AsyncIterator[StoreReader]:
    """The store that the settings name, to be read.

    Args:
        settings: of the service whose store it is.
        adapter_format: reads adapters.
        fingerprint: of the documents that are seen.

    Raises:
        StoreError: there is none, or it is of another release.
    """
    if settings.redis_url is None:
        reader = await asyncio.to_thread(_DiskReader, settings.data_dir, adapter_format, fingerprint)
        try:
            yield reader
        finally:
            reader.close()
        return
    metrics = Metrics()
    connection = RedisConnection(settings.redis_url, metrics)
    try:
        yield RedisStore(
            connection,
            fingerprint=fingerprint,
            adapter_format=adapter_format,
            adapter_ttl=settings.adapter_ttl,
            metrics=metrics,
        )
    finally:
        await connection.close()


class _DiskReader:
    """`StoreReader` of a data directory. What is damaged is left to the process that writes there."""

    def __init__(self, directory: Path, adapter_format: AdapterFormat, fingerprint: str) -> None:
        if not (directory / "documents.sqlite").is_file():
            raise StoreError(f"PERK_DATA_DIR: {str(directory)!r} holds no documents")
        self._fingerprint = fingerprint
        self._index = DocumentIndex(directory / "documents.sqlite", read_only=True)
        self._files = AdapterFiles(directory / "adapters", adapter_format)

    def close(self) -> None:
        self._index.close()

    async def find(self, document_id: str) -> DocumentRecord | None:
        record = await asyncio.to_thread(self._index.find, document_id)
        return record if record is not None and record.fingerprint == self._fingerprint else None

    async def get(self, document_id: str) -> Tensor | None:
        return await asyncio.to_thread(self._get, document_id)

    def _get(self, document_id: str) -> Tensor | None:
        sha256 = self._index.checksum(document_id)
        if sha256 is None:
            return None
        try:
            return self._files.read(document_id, sha256)
        except DamagedAdapter as damage:
            _log.warning("adapter damaged", document_id=document_id, reason=damage.reason)
            return None
