"""One encode a document among all replicas, and what they tell one another."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import structlog
from redis.exceptions import RedisError

from service.errors import StoreError
from service.metrics import Metrics
from service.store import redis_scripts as scripts
from service.store.protocol import Claim
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection

__all__ = ["LEASE_SECONDS", "News", "RedisLeases"]

_log = structlog.get_logger(__name__)

LEASE_SECONDS = 10.0
"""A replica that was killed in the middle of an encode hands it over after this time."""

# Of the lease's time, so that two renewals may fail.
_RENEWALS = 4
# Progress that follows sooner waits: others need not see every slice.
_TELL_SECONDS = 0.2
_NEWS_PAUSE_SECONDS = 0.5


class News(NamedTuple):
    """What a replica has told.

    Attributes:
        event: ``queued``, ``progress``, ``free``, ``ended``, ``deleted``; ``missed`` where some may have been missed.
        document_id: of the document; empty with ``missed``.
    """

    event: str
    document_id: str


class _Held:
    """A lease of this process."""

    def __init__(self, token: str, on_lost: Callable[[], None]) -> None:
        self.token = token
        self.on_lost = on_lost
        self.progress: Mapping[str, Any] | None = None
        self.news = asyncio.Event()
        self.renewing: asyncio.Task[None] | None = None


class RedisLeases:
    """`Leases` in Redis. One event loop owns it.

    A lease is a key with a random token and a time to live, renewed by its holder. Its end is seen by the writes too:
    `RedisStore` takes the outcome of an encode only from the holder.
    """

    def __init__(
        self, connection: RedisConnection, store: RedisStore, *, metrics: Metrics, seconds: float = LEASE_SECONDS
    ) -> None:
        """Prepare; nothing is held yet.

        Args:
            connection: to Redis.
            store: has the documents.
            metrics: where lost leases are counted.
            seconds: that a lease lives without being renewed.
        """
        self._connection = connection
        self._store = store
        self._metrics = metrics
        self._seconds = seconds
        self._held: dict[str, _Held] = {}

    async def take(self, document_id: str, on_lost: Callable[[], None], *, token: str | None = None) -> Claim:
        """As `Leases.take`; with the token of a lease that was had with `RedisStore.add`, that one."""
        token = token or secrets.token_hex(16)
        match await self._run(scripts.TAKE, document_id, token, self._milliseconds):
            case 1:
                held = _Held(token, on_lost)
                self._held[document_id] = held
                self._store.tokens[document_id] = token
                held.renewing = asyncio.create_task(self._renew(document_id, held))
                return "taken"
            case 0:
                return "elsewhere"
            case _:
                return "over"

    async def release(self, document_id: str) -> None:
        """As `Leases.release`."""
        held = self._held.pop(document_id, None)
        if held is None:
            return
        self._store.tokens.pop(document_id, None)
        if held.renewing is not None:
            held.renewing.cancel()
            await asyncio.wait({held.renewing})
        # Redis being away, the lease ends by itself.
        with suppress(StoreError):
            await self._run(scripts.RELEASE, document_id, held.token)

    def tell(self, document_id: str, progress: Mapping[str, Any]) -> None:
        """As `Leases.tell`."""
        held = self._held.get(document_id)
        if held is not None:
            held.progress = progress
            held.news.set()

    async def progress(self, document_ids: list[str]) -> dict[str, dict[str, Any] | None]:
        """Of those of some documents that a replica has a lease of: how far it is, None where not known."""
        if not document_ids:
            return {}
        names = [f"{self._store.prefix}:doc:{name}:{part}" for name in document_ids for part in ("lease", "progress")]
        found = await self._connection.run(lambda redis: redis.mget(names))
        pairs = zip(document_ids, found[0::2], found[1::2], strict=True)
        return {name: _progress(progress) for name, lease, progress in pairs if lease is not None}

    async def news(self) -> AsyncIterator[News]:
        """What replicas tell, this one included, for ever."""
        while True:
            try:
                async with self._connection.client.pubsub() as channel:
                    await channel.subscribe(f"{self._store.prefix}:news")
                    while True:
                        message = await channel.get_message(timeout=1.0)
                        if message is None:
                            continue
                        if message["type"] == "subscribe":
                            # At the start, and after a connection was cut.
                            yield News("missed", "")
                        elif message["type"] == "message":
                            event, _, document_id = message["data"].decode(errors="replace").partition(" ")
                            yield News(event, document_id)
            except (RedisError, OSError):
                await asyncio.sleep(_NEWS_PAUSE_SECONDS)

    async def _renew(self, document_id: str, held: _Held) -> None:
        loop = asyncio.get_running_loop()
        interval = self._seconds / _RENEWALS
        due = loop.time() + interval
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await held.news.wait()
            held.news.clear()
            progress = "" if held.progress is None else json.dumps(dict(held.progress))
            try:
                is_ours = await self._run(scripts.EXTEND, document_id, held.token, self._milliseconds, progress)
            except StoreError:
                # Should it end meanwhile, it is taken up again as long as no one else has.
                is_ours = 1
            if not is_ours:
                break
            await asyncio.sleep(_TELL_SECONDS)
            due = loop.time() + interval
        # Ended, if well, by our own hand: the document is ready or gone, and `release` is on its way.
        if self._held.get(document_id) is held and await self._is_taken_over(document_id):
            _log.warning("lease lost", document_id=document_id)
            self._metrics.leases_lost.inc()
            held.on_lost()

    async def _is_taken_over(self, document_id: str) -> bool:
        try:
            record = await self._store.find(document_id)
        except StoreError:
            return True
        return record is not None and record.status == "queued"

    async def _run(self, script: str, document_id: str, *arguments: Any) -> int:
        prefix = self._store.prefix
        return int(
            await self._connection.run(
                lambda redis: redis.register_script(script)(keys=[prefix], args=[document_id, *arguments])
            )
        )

    @property
    def _milliseconds(self) -> int:
        return int(1000 * self._seconds)


def _progress(content: bytes | str | None) -> dict[str, Any] | None:
    try:
        found = None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
