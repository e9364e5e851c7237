"""The shared store: documents and adapters in Redis, for any number of replicas."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, cast

import structlog
from pydantic import TypeAdapter
from redis.asyncio import Redis
from torch import Tensor

from service.errors import DamagedText, LeaseLost
from service.metrics import Metrics
from service.store import redis_scripts as scripts
from service.store.adapter_format import AdapterFormat, DamagedAdapter
from service.store.protocol import Place, Readiness
from service.store.record import DocumentRecord
from service.store.redis_connection import DamagedValue, RedisConnection

__all__ = ["RedisStore"]

_log = structlog.get_logger(__name__)

CHUNK_BYTES = 32 * 1024**2
"""Most bytes of an adapter in one value: what is sent at once stays far below the 64 MB that proxies allow."""

# Under pressure Redis (`volatile-lru`) gives up only what has a time to live; adapters kept "for ever" have this one.
_FOREVER_MS = 10 * 365 * 24 * 3600 * 1000
# An adapter that is being written is not there yet; what a killed process has left of it goes after this time.
_STAGED_MS = 120_000
# For a document with its adapter to be written after it.
_ADOPTED_MS = 10_000
_STATUSES = ("queued", "ready", "failed")
_FINGERPRINTS = "perk:fingerprints"
# Checks the types; what a later release writes beside is not looked at.
_RECORD = TypeAdapter(DocumentRecord)
# No moment is later than the last of the year 9999.
_LAST_MOMENT = 253_402_300_799.0
_MOST_DIGITS = 18


class RedisStore:
    """`DocumentStore` and `AdapterTier` of one fingerprint in Redis. One event loop owns it.

    A document is a hash (its record, a field an attribute, each as JSON), a string (its text, compressed) and a hash
    (its adapter in chunks, their checksum and size). Who encodes it is in `RedisLeases`; the outcome of an encode is
    refused from anyone else.

    Attributes:
        prefix: what the names of all keys of this fingerprint begin with.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        fingerprint: str,
        adapter_format: AdapterFormat,
        adapter_ttl: int | None,
        metrics: Metrics,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Prepare the store.

        Args:
            connection: to Redis.
            fingerprint: of the documents that are seen.
            adapter_format: how adapters are written.
            adapter_ttl: seconds that an adapter is kept; None: until Redis has no space for it.
            metrics: where dropped adapters are counted.
            chunk_bytes: most bytes of an adapter in one value.
        """
        self._connection = connection
        self._fingerprint = fingerprint
        self._format = adapter_format
        self._ttl_ms = _FOREVER_MS if adapter_ttl is None else 1000 * adapter_ttl
        self._metrics = metrics
        self._chunk_bytes = chunk_bytes
        self.prefix = f"perk:{fingerprint[:16]}"
        self.tokens: dict[str, str] = {}
        """Of the leases that this process holds, by document."""

    async def add(self, record: DocumentRecord, text: str, *, token: str = "") -> tuple[DocumentRecord, bool]:
        """As `DocumentStore.add`; with a token, a document that was not there is leased to it for a while."""
        compressed = await asyncio.to_thread(zlib.compress, text.encode())
        await self._use(lambda redis: redis.sadd(_FINGERPRINTS, self._fingerprint[:16]))
        words: list[Any] = [compressed, token, _ADOPTED_MS, *_fields(asdict(record))]
        with suppress(DamagedValue):
            if await self._run(scripts.ADD, record.id, *words) == 1:
                return record, True
            kept = await self.find(record.id)
            if kept is not None:
                return kept, False
        # The record is damaged, or was deleted just now: either way, nothing is there worth keeping.
        await self._run(scripts.DELETE, record.id, record.owner)
        await self._run(scripts.ADD, record.id, *words)
        return record, True

    async def find(self, document_id: str) -> DocumentRecord | None:
        """As `DocumentStore.find`."""
        try:
            fields = await self._use(lambda redis: redis.hgetall(self._key(document_id)))
        except DamagedValue:
            return None
        return self._record(document_id, fields) if fields else None

    async def page(self, limit: int, after: Place | None, *, owner: str = "") -> list[DocumentRecord]:
        """As `DocumentStore.page`."""
        name = f"{self._owned(owner)}:documents"
        if after is None:
            ids = await self._use(lambda redis: redis.zrevrange(name, 0, limit - 1))
        else:
            # Members of one score are in the order of their ids: those of this very moment are cut here.
            at, place = repr(after.created_at), after.id.encode()
            same = await self._use(lambda redis: redis.zrevrangebyscore(name, at, at))
            older = await self._use(lambda redis: redis.zrevrangebyscore(name, f"({at}", "-inf", start=0, num=limit))
            ids = [*(member for member in same if member < place), *older][:limit]
        return await self._records([member.decode() for member in ids])

    async def queued(self) -> list[str]:
        """As `DocumentStore.queued`."""
        members = await self._use(lambda redis: redis.zrange(f"{self.prefix}:queued", 0, -1))
        return [member.decode() for member in members]

    async def text(self, document_id: str) -> str | None:
        """As `DocumentStore.text`."""
        try:
            compressed = await self._use(lambda redis: redis.get(self._key(document_id, "text")))
            if compressed is None:
                return None
            return (await asyncio.to_thread(zlib.decompress, compressed)).decode()
        except (zlib.error, UnicodeDecodeError, DamagedValue):
            raise DamagedText(document_id) from None

    async def counts(self, *, owner: str | None = None) -> dict[str, int]:
        """As `DocumentStore.counts`."""
        prefix = self.prefix if owner is None else self._owned(owner)
        names = [f"{prefix}:{status}" for status in _STATUSES]
        found = await self._pipeline(lambda pipe: [pipe.zcard(name) for name in names])
        return {status: count for status, count in zip(_STATUSES, found, strict=True) if count}

    async def mark_queued(self, document_id: str) -> None:
        """As `DocumentStore.mark_queued`."""
        # That it was ready stays: whoever asks it now waits for it to be so again.
        cleared = dict.fromkeys(("error", "segments", "expires_at", "encode"))
        await self._run(scripts.MARK, document_id, "queued", "", *_fields(cleared))

    async def mark_ready(self, document_id: str, readiness: Readiness) -> None:
        """As `DocumentStore.mark_ready`.

        Raises:
            LeaseLost: another replica has the document.
        """
        written = await self._run(scripts.READY, document_id, self._token(document_id), *_fields(asdict(readiness)))
        if not written:
            await self._require_gone(document_id)

    async def mark_failed(self, document_id: str, error: str) -> None:
        """As `DocumentStore.mark_failed`; without effect where another replica has the document."""
        await self._run(scripts.MARK, document_id, "failed", self._token(document_id), *_fields({"error": error}))

    async def touch(self, document_id: str, expires_at: float) -> None:
        """As `DocumentStore.touch`."""
        milliseconds = max(int(1000 * (expires_at - time.time())), 1)
        await self._run(scripts.TOUCH, document_id, json.dumps(expires_at), milliseconds)

    async def delete(self, document_id: str, *, owner: str = "") -> bool:
        """As `DocumentStore.delete`."""
        if await self._run(scripts.DELETE, document_id, owner):
            return True
        others = await self._use(lambda redis: redis.smembers(_FINGERPRINTS))
        found = False
        for fingerprint in others:
            prefix = f"perk:{fingerprint.decode()}"
            found = bool(await self._run(scripts.DELETE, document_id, owner, prefix=prefix)) or found
        return found

    async def expired(self, now: float) -> list[str]:  # noqa: ARG002 - of the protocol
        """As `DocumentStore.expired`: none, Redis itself drops them."""
        return []

    async def get(self, document_id: str) -> Tensor | None:
        """As `AdapterTier.get`; a damaged adapter is dropped and counted."""
        name, checksum = self._key(document_id, "adapter"), b""
        try:
            sha256, chunks = await self._meta(name)
            if sha256 is None and chunks is None:
                return None
            checksum = sha256 or b""
            return await self._read(name, checksum, chunks)
        except DamagedAdapter as damage:
            _log.warning("adapter damaged", document_id=document_id, reason=damage.reason)
            await self._run(scripts.DROP, document_id, checksum)
            self._metrics.adapters_dropped.labels(damage.reason).inc()
            return None

    async def put(self, document_id: str, adapter: Tensor) -> Tensor:
        """As `AdapterTier.put`.

        Raises:
            LeaseLost: another replica has the document.
        """
        content = await asyncio.to_thread(self._format.pack, adapter)
        await self.put_packed(document_id, content)
        return await asyncio.to_thread(self._format.settle, adapter)

    async def put_packed(self, document_id: str, content: bytes) -> None:
        """As `put`, of an adapter that is written already."""
        staged = f"{self._key(document_id, 'adapter')}:{secrets.token_hex(8)}"
        chunks = range(0, len(content), self._chunk_bytes)
        meta = {"sha256": hashlib.sha256(content).hexdigest(), "chunks": len(chunks), "bytes": len(content)}
        await self._stage(staged, meta)
        for number, start in enumerate(chunks):
            await self._stage(staged, {f"chunk:{number}": content[start : start + self._chunk_bytes]})
        if not await self._run(scripts.COMMIT, document_id, self._token(document_id), staged, self._ttl_ms):
            await self._require_gone(document_id)

    async def _stage(self, name: str, fields: dict[str, Any]) -> None:
        # Both at once, so that nothing is ever left behind for good.
        await self._pipeline(lambda pipe: [pipe.hset(name, mapping=fields), pipe.pexpire(name, _STAGED_MS)])

    async def drop(self, document_id: str, reason: str) -> None:
        """As `AdapterTier.drop`."""
        await self._run(scripts.DROP, document_id, "")
        self._metrics.adapters_dropped.labels(reason).inc()

    async def existing(self, document_ids: list[str]) -> set[str]:
        """Those of some documents that are there."""
        found = await self._pipeline(lambda pipe: [pipe.exists(self._key(name)) for name in document_ids])
        return {name for name, there in zip(document_ids, found, strict=True) if there}

    async def _meta(self, name: str) -> tuple[bytes | None, bytes | None]:
        try:
            sha256, chunks = await self._use(lambda redis: redis.hmget(name, ["sha256", "chunks"]))
        except DamagedValue:
            raise DamagedAdapter("format") from None
        return sha256, chunks

    async def _read(self, name: str, checksum: bytes, chunks: bytes | None) -> Tensor:
        if chunks is None or not chunks.isdigit() or len(chunks) > _MOST_DIGITS:
            raise DamagedAdapter("format")
        parts = [await self._chunk(name, number) for number in range(int(chunks))]
        return await asyncio.to_thread(self._unpack, b"".join(parts), checksum)

    async def _chunk(self, name: str, number: int) -> bytes:
        chunk: bytes | None = await self._use(lambda redis: redis.hget(name, f"chunk:{number}"))
        if chunk is None:
            raise DamagedAdapter("missing")
        return chunk

    def _unpack(self, content: bytes, checksum: bytes) -> Tensor:
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            raise DamagedAdapter("checksum")
        return self._format.unpack(content)

    async def _require_gone(self, document_id: str) -> None:
        """A refused write is fine where the document was deleted."""
        if await self.find(document_id) is not None:
            raise LeaseLost(document_id)

    async def _records(self, document_ids: list[str]) -> list[DocumentRecord]:
        found = await self._pipeline(lambda pipe: [pipe.hgetall(self._key(name)) for name in document_ids])
        # Deleted since the list was read.
        pairs = zip(document_ids, found, strict=True)
        records = [self._record(document_id, fields) for document_id, fields in pairs if fields]
        return [record for record in records if record is not None]

    def _record(self, document_id: str, fields: dict[bytes, bytes]) -> DocumentRecord | None:
        """None where it is damaged: the document is then as good as gone, and can be sent again."""
        try:
            record = _RECORD.validate_python({name.decode(): json.loads(value) for name, value in fields.items()})
            moments = [at for at in (record.created_at, record.ready_at, record.expires_at) if at is not None]
            if record.id != document_id or not all(0 <= at <= _LAST_MOMENT for at in moments):
                raise ValueError(document_id)
            return record
        except (ValueError, RecursionError):
            _log.error("record damaged", document_id=document_id)
            self._metrics.redis_errors.labels("damaged").inc()
            return None

    async def _pipeline(self, fill: Callable[[Any], object]) -> list[Any]:
        async def execute(redis: Redis) -> list[Any]:
            async with redis.pipeline(transaction=True) as pipe:
                fill(pipe)
                return list(await pipe.execute())

        return list(await self._use(execute))

    async def _use(self, operation: Callable[[Redis], Any]) -> Any:
        return await self._connection.run(cast(Callable[[Redis], Awaitable[Any]], operation))

    async def _run(self, script: str, document_id: str, *arguments: Any, prefix: str | None = None) -> int:
        return int(
            await self._use(
                lambda redis: redis.register_script(script)(
                    keys=[prefix or self.prefix], args=[document_id, *arguments]
                )
            )
        )

    def _token(self, document_id: str) -> str:
        return self.tokens.get(document_id, "")

    def _owned(self, owner: str) -> str:
        return f"{self.prefix}:owner:{owner}"

    def _key(self, document_id: str, part: str = "") -> str:
        name = f"{self.prefix}:doc:{document_id}"
        return f"{name}:{part}" if part else name


def _fields(values: dict[str, Any]) -> list[str]:
    """Names and values, by turns, as a hash holds them."""
    return [word for name, value in values.items() for word in (name, json.dumps(value))]
