"""What one process has of Redis, and records to keep there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import SecretStr
from torch import Tensor

from service.metrics import Metrics
from service.store.adapter_format import AdapterFormat
from service.store.protocol import Readiness
from service.store.record import DocumentRecord
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection
from service.store.redis_leases import RedisLeases
from tests.service.records import ADAPTER_SIZE, FINGERPRINT, SUMMARY

CHUNK_BYTES = 512
PATIENCE_SECONDS = 20.0


def redis_key(number: int = 0, part: str = "") -> str:
    """Where a record, or a part of its document, lies in Redis."""
    name = f"perk:{FINGERPRINT[:16]}:doc:doc_{number:032x}"
    return f"{name}:{part}" if part else name


class Replica:
    """What one process has of Redis."""

    def __init__(self, url: str, *, adapter_ttl: int | None, fingerprint: str, lease_seconds: float) -> None:
        self.metrics = Metrics()
        self.connection = RedisConnection(SecretStr(url), self.metrics)
        self.store = RedisStore(
            self.connection,
            fingerprint=fingerprint,
            adapter_format=AdapterFormat("bf16", size=ADAPTER_SIZE, fingerprint=fingerprint),
            adapter_ttl=adapter_ttl,
            metrics=self.metrics,
            chunk_bytes=CHUNK_BYTES,
        )
        self.leases = RedisLeases(self.connection, self.store, metrics=self.metrics, seconds=lease_seconds)

    async def ready(self, record: DocumentRecord, adapter: Tensor, expires_at: float | None = None) -> Tensor:
        """Add a document and let it be encoded."""
        await self.store.add(record, "text")
        assert await self.leases.take(record.id, nothing) == "taken"
        kept = await self.store.put(record.id, adapter)
        await self.store.mark_ready(record.id, Readiness(3, 1, 200.0, expires_at, SUMMARY))
        await self.leases.release(record.id)
        return kept

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def nothing() -> None:
    """What a replica does that need not know of a lost lease."""


@asynccontextmanager
async def open_replica(
    redis: Any, *, adapter_ttl: int | None = None, fingerprint: str = FINGERPRINT, lease_seconds: float = 10.0
) -> AsyncIterator[Replica]:
    replica = Replica(redis.url, adapter_ttl=adapter_ttl, fingerprint=fingerprint, lease_seconds=lease_seconds)
    try:
        yield replica
    finally:
        await replica.connection.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():
            await asyncio.sleep(0.01)
