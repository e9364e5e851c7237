"""Documents, adapters and leases in a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import SecretStr
from torch import Tensor

from service.errors import DamagedText, LeaseLost, StorageFull, StoreError, StoreUnavailable
from service.metrics import Metrics
from service.store.adapter_format import AdapterFormat
from service.store.protocol import Place, Readiness
from service.store.record import DocumentRecord, EncodeSummary
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection
from service.store.redis_leases import News, RedisLeases

_SIZE = 1000
_CHUNK = 512
_FINGERPRINT = "f" * 64
_SUMMARY = EncodeSummary(seconds=1.5, steps=4, loss_before=3.0, loss_after=2.0)
_PATIENCE_SECONDS = 20.0


def _record(number: int = 0, **changes: Any) -> DocumentRecord:
    record = DocumentRecord(
        id=f"doc_{number:032x}",
        fingerprint=_FINGERPRINT,
        status="queued",
        title="a title",
        metadata={"shelf": [1, None, "α"]},
        bytes=4,
        tokens=2,
        created_at=100.1 + number,
    )
    return replace(record, **changes)


class Replica:
    """What one process has of Redis."""

    def __init__(self, url: str, *, adapter_ttl: int | None, fingerprint: str, lease_seconds: float) -> None:
        self.metrics = Metrics()
        self.connection = RedisConnection(SecretStr(url), self.metrics)
        self.store = RedisStore(
            self.connection,
            fingerprint=fingerprint,
            adapter_format=AdapterFormat("bf16", size=_SIZE, fingerprint=fingerprint),
            adapter_ttl=adapter_ttl,
            metrics=self.metrics,
            chunk_bytes=_CHUNK,
        )
        self.leases = RedisLeases(self.connection, self.store, metrics=self.metrics, seconds=lease_seconds)

    async def ready(self, record: DocumentRecord, adapter: Tensor, expires_at: float | None = None) -> Tensor:
        """Add a document and let it be encoded."""
        await self.store.add(record, "text")
        assert await self.leases.take(record.id, _nothing) == "taken"
        kept = await self.store.put(record.id, adapter)
        await self.store.mark_ready(record.id, Readiness(3, 1, 200.0, expires_at, _SUMMARY))
        await self.leases.release(record.id)
        return kept

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def _nothing() -> None:
    pass


@asynccontextmanager
async def _replica(
    redis: Any, *, adapter_ttl: int | None = None, fingerprint: str = _FINGERPRINT, lease_seconds: float = 10.0
) -> AsyncIterator[Replica]:
    replica = Replica(redis.url, adapter_ttl=adapter_ttl, fingerprint=fingerprint, lease_seconds=lease_seconds)
    try:
        yield replica
    finally:
        await replica.connection.close()


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not await holds():
            await asyncio.sleep(0.01)


@pytest.fixture
def adapter() -> Tensor:
    return torch.randn(_SIZE, generator=torch.Generator().manual_seed(0))


def _key(number: int = 0, part: str = "") -> str:
    name = f"perk:{_FINGERPRINT[:16]}:doc:doc_{number:032x}"
    return f"{name}:{part}" if part else name


def test_records_texts_and_counts_are_shared(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one, _replica(redis) as other:
            assert await one.store.add(_record(1), "text one α") == (_record(1), True)
            assert await other.store.add(_record(1, created_at=7.0), "text one α") == (_record(1), False)
            await one.ready(_record(2), adapter, expires_at=300.5)
            await one.store.add(_record(3), "text three")
            await one.store.mark_failed(_record(3).id, "for a reason")

            ready = _record(2, status="ready", tokens=3, segments=1, ready_at=200.0, expires_at=300.5, encode=_SUMMARY)
            failed = _record(3, status="failed", error="for a reason")
            assert await other.store.find(ready.id) == ready
            assert await other.store.text(_record(1).id) == "text one α"
            assert await other.store.page(10, None) == [failed, ready, _record(1)]
            assert await other.store.page(1, Place(failed.created_at, failed.id)) == [ready]
            assert await other.store.page(10, Place(ready.created_at, ready.id)) == [_record(1)]
            assert await other.store.queued() == [_record(1).id]
            assert await other.store.counts() == {"queued": 1, "ready": 1, "failed": 1}
            assert (await other.store.add(_record(3), "text three"))[0].status == "queued"
            await other.store.drop(ready.id, "expired")
            await other.store.mark_queued(ready.id)
            assert await one.store.find(ready.id) == _record(2, tokens=3, ready_at=200.0)

    asyncio.run(scenario())


def test_documents_of_one_moment_are_listed_once_each(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            for number in range(5):
                await one.store.add(_record(number, created_at=1 / 3), "text")
            seen: list[str] = []
            place: Place | None = None
            while page := await one.store.page(2, place):
                seen += [record.id for record in page]
                place = Place(page[-1].created_at, page[-1].id)
            assert seen == [_record(number).id for number in (4, 3, 2, 1, 0)]

    asyncio.run(scenario())


def test_every_owner_has_lists_of_its_own_and_deletes_only_from_them(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one, _replica(redis, fingerprint="e" * 64) as stranger:
            ann, bob = _record(1, owner="ann", text_id=_record(9).id), _record(2, owner="bob")
            await one.ready(ann, adapter)
            await one.store.add(bob, "text")

            found = await one.store.find(ann.id)
            assert found is not None
            assert (found.owner, found.text_id) == ("ann", _record(9).id)
            assert await one.store.page(10, None, owner="ann") == [found]
            assert await one.store.page(10, None, owner="bob") == [bob]
            assert await one.store.page(10, None) == []
            assert await one.store.counts(owner="ann") == {"ready": 1}
            assert await one.store.counts(owner="bob") == {"queued": 1}
            assert await one.store.counts() == {"ready": 1, "queued": 1}
            for store in (one.store, stranger.store):
                assert not await store.delete(ann.id, owner="bob")
                assert not await store.delete(ann.id)
            assert await one.store.find(ann.id) == found
            assert await one.store.delete(ann.id, owner="ann")
            assert await one.store.counts() == {"queued": 1}
            assert await stranger.store.delete(bob.id, owner="bob")

    asyncio.run(scenario())
    assert redis.names() == {"perk:fingerprints"}


def test_an_adapter_is_kept_in_chunks_that_live_and_go_together(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis, adapter_ttl=1000) as one, _replica(redis) as other:
            kept = await one.ready(_record(), adapter)
            assert torch.equal(kept, adapter.bfloat16().float())
            found = await other.store.get(_record().id)
            assert found is not None
            assert torch.equal(found, kept)

    asyncio.run(scenario())
    fields = redis.client.hgetall(_key(0, "adapter"))
    chunks = [value for name, value in fields.items() if name.startswith(b"chunk:")]
    assert len(chunks) > 4
    assert max(map(len, chunks)) == _CHUNK
    assert 990_000 < redis.client.pttl(_key(0, "adapter")) <= 1_000_000
    assert redis.client.ttl(_key()) == redis.client.ttl(_key(0, "text")) == -1, "record and text must not expire"
    assert redis.names() == {
        "perk:fingerprints",
        _key(),
        _key(0, "text"),
        _key(0, "adapter"),
        f"perk:{_FINGERPRINT[:16]}:owner::documents",
        f"perk:{_FINGERPRINT[:16]}:owner::ready",
        f"perk:{_FINGERPRINT[:16]}:ready",
    }


def test_the_use_of_an_adapter_prolongs_its_time_but_never_shortens_it(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis, adapter_ttl=100) as one:
            now = time.time()
            await one.ready(_record(), adapter, expires_at=now + 100)
            await one.store.touch(_record().id, now + 500)
            await one.store.touch(_record().id, now + 50)
            record = await one.store.find(_record().id)
            assert record is not None
            assert record.expires_at == now + 500

    asyncio.run(scenario())
    assert 400_000 < redis.client.pttl(_key(0, "adapter")) <= 500_000


def _flip(redis: Any) -> None:
    chunk = bytearray(redis.client.hget(_key(0, "adapter"), "chunk:1"))
    chunk[7] ^= 0xFF
    redis.client.hset(_key(0, "adapter"), "chunk:1", bytes(chunk))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip, "checksum"),
        (lambda redis: redis.client.hdel(_key(0, "adapter"), "chunk:2"), "missing"),
        (lambda redis: redis.client.hset(_key(0, "adapter"), "chunks", "99999999999"), "missing"),
        (lambda redis: redis.client.hset(_key(0, "adapter"), "chunks", "many"), "format"),
        (lambda redis: redis.client.hdel(_key(0, "adapter"), "sha256"), "checksum"),
        (lambda redis: redis.client.set(_key(0, "adapter"), "something else"), "format"),
    ],
)
def test_a_damaged_adapter_is_dropped_and_counted(
    redis: Any, adapter: Tensor, damage: Callable[[Any], object], reason: str
) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.ready(_record(), adapter)
            damage(redis)
            assert await one.store.get(_record().id) is None
            assert one.counted("perk_adapters_dropped_total", reason=reason) == 1
            assert redis.client.exists(_key(0, "adapter")) == 0
            assert await one.store.get(_record().id) is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "damage",
    [
        lambda redis: redis.client.hset(_key(), "tokens", "{"),
        lambda redis: redis.client.hdel(_key(), "bytes"),
        lambda redis: redis.client.set(_key(), "something else"),
    ],
)
def test_a_document_whose_record_is_damaged_can_be_sent_again(redis: Any, damage: Callable[[Any], object]) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.store.add(_record(), "text")
            damage(redis)
            assert await one.store.find(_record().id) is None
            assert await one.store.add(_record(), "text") == (_record(), True)
            assert await one.store.find(_record().id) == _record()
            assert await one.store.text(_record().id) == "text"

    asyncio.run(scenario())


def test_a_damaged_text_is_told(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.store.add(_record(), "text")
            redis.client.set(_key(0, "text"), b"\x00")
            with pytest.raises(DamagedText):
                await one.store.text(_record().id)

    asyncio.run(scenario())


def test_only_one_replica_has_a_document_until_it_lets_go(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one, _replica(redis) as other:
            await one.store.add(_record(), "text")
            assert await one.leases.take(_record().id, _nothing) == "taken"
            assert await other.leases.take(_record().id, _nothing) == "elsewhere"
            one.leases.tell(_record().id, {"done": 0.5})

            async def told() -> bool:
                return (await other.leases.progress([_record().id])) == {_record().id: {"done": 0.5}}

            await _until(told)
            await one.leases.release(_record().id)
            assert await other.leases.progress([_record().id]) == {}
            assert await other.leases.take(_record().id, _nothing) == "taken"
            await other.store.mark_failed(_record().id, "reason")
            assert await one.leases.take(_record().id, _nothing) == "over"

    asyncio.run(scenario())


def test_a_lease_is_renewed_and_ends_with_its_holder(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis, lease_seconds=0.4) as one, _replica(redis, lease_seconds=0.4) as other:
            await one.store.add(_record(), "text")
            assert await one.leases.take(_record().id, _nothing) == "taken"
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                assert await other.leases.take(_record().id, _nothing) == "elsewhere"
                await asyncio.sleep(0.05)
            held = one.leases._held[_record().id]
            assert held.renewing is not None
            # As if the process were gone.
            held.renewing.cancel()

            async def taken_over() -> bool:
                return await other.leases.take(_record().id, _nothing) == "taken"

            await _until(taken_over)
            await other.leases.release(_record().id)

    asyncio.run(scenario())


def test_who_has_lost_its_lease_is_told_and_cannot_write(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis, lease_seconds=0.4) as one, _replica(redis) as other:
            lost = asyncio.Event()
            await one.store.add(_record(), "text")
            assert await one.leases.take(_record().id, lost.set) == "taken"
            redis.client.delete(_key(0, "lease"))
            claim = await other.leases.take(_record().id, _nothing)
            assert claim == "taken"

            with pytest.raises(LeaseLost):
                await one.store.put(_record().id, adapter)
            with pytest.raises(LeaseLost):
                await one.store.mark_ready(_record().id, Readiness(3, 1, 200.0, None, _SUMMARY))
            await one.store.mark_failed(_record().id, "late")
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await lost.wait()
            assert one.counted("perk_leases_lost_total") == 1
            assert await other.store.find(_record().id) == _record()

            await other.store.put(_record().id, adapter)
            await other.store.mark_ready(_record().id, Readiness(3, 1, 200.0, None, _SUMMARY))
            with pytest.raises(LeaseLost):
                await one.store.put(_record().id, adapter + 1)
            await one.leases.release(_record().id)
            await other.leases.release(_record().id)
            found = await one.store.get(_record().id)
            assert found is not None
            assert torch.equal(found, adapter.bfloat16().float())
            assert not [name for name in redis.names() if ":adapter:" in name], "a refused adapter is left behind"

    asyncio.run(scenario())


def test_a_lease_that_ended_unnoticed_is_taken_up_again_where_no_one_else_has(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.store.add(_record(), "text")
            assert await one.leases.take(_record().id, _nothing) == "taken"
            redis.client.delete(_key(0, "lease"))
            await one.store.put(_record().id, adapter)
            await one.store.mark_ready(_record().id, Readiness(3, 1, 200.0, None, _SUMMARY))
            await one.leases.release(_record().id)

    asyncio.run(scenario())
    assert redis.client.hget(_key(), "status") == b'"ready"'


def test_what_is_deleted_leaves_nothing_and_does_not_come_back(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one, _replica(redis, fingerprint="e" * 64) as stranger:
            await one.ready(_record(1), adapter)
            await one.store.add(_record(2), "text")
            assert await one.leases.take(_record(2).id, _nothing) == "taken"
            assert await one.store.delete(_record(1).id)
            assert await stranger.store.delete(_record(2).id), "under whatever fingerprint"
            await one.store.put(_record(2).id, adapter)
            await one.store.mark_ready(_record(2).id, Readiness(3, 1, 200.0, None, _SUMMARY))
            await one.leases.release(_record(2).id)
            assert not await one.store.delete(_record(1).id)

    asyncio.run(scenario())
    assert redis.names() == {"perk:fingerprints"}


def test_replicas_hear_of_one_another(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one, _replica(redis) as other:
            news = other.leases.news()
            async with asyncio.timeout(_PATIENCE_SECONDS):
                assert await anext(news) == News("missed", "")
                await one.store.add(_record(), "text")
                assert await anext(news) == News("queued", _record().id)
                # A connection that was cut is opened again, and may have missed something.
                redis.client.client_kill_filter(_type="pubsub")
                assert await anext(news) == News("missed", "")
                await one.store.delete(_record().id)
                assert await anext(news) == News("deleted", _record().id)
            await news.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())


def test_a_cut_connection_is_not_noticed(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.store.add(_record(), "text")
            for _ in range(5):
                redis.client.client_kill_filter(_type="normal", skipme=True)
                assert await one.store.find(_record().id) == _record()
            assert one.connection.available

    asyncio.run(scenario())


def test_redis_away_is_told_at_once_and_found_again(redis: Any) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.store.add(_record(), "text")
            back = asyncio.Event()
            watching = asyncio.create_task(one.connection.watch(back.set))
            redis.kill()
            with pytest.raises(StoreUnavailable):
                await one.store.find(_record().id)
            assert one.counted("perk_redis_up") == 0
            started = time.monotonic()
            for _ in range(100):
                with pytest.raises(StoreUnavailable):
                    await one.store.find(_record().id)
            assert time.monotonic() - started < 1, "each command tried to connect anew"
            redis.start()
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await back.wait()
            assert await one.store.find(_record().id) == _record(), "Redis has forgotten a document"
            assert one.counted("perk_redis_up") == 1
            watching.cancel()

    asyncio.run(scenario())


def test_a_full_redis_is_told_and_nothing_is_half_written(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.store.add(_record(1), "text")
            assert await one.leases.take(_record(1).id, _nothing) == "taken"
            before = redis.names()
            redis.client.config_set("maxmemory", "1")
            try:
                with pytest.raises(StorageFull):
                    await one.store.add(_record(2), "text")
                with pytest.raises(StorageFull):
                    await one.store.put(_record(1).id, adapter)
                assert await one.store.find(_record(1).id) == _record(1)
            finally:
                redis.client.config_set("maxmemory", "0")
            assert redis.names() == before
            await one.store.put(_record(1).id, adapter)
            await one.leases.release(_record(1).id)

    asyncio.run(scenario())


def test_a_wrong_password_is_told_without_it(redis: Any) -> None:
    async def scenario() -> None:
        connection = RedisConnection(SecretStr(redis.url.replace(redis.password, "a-wrong-secret")), Metrics())
        with pytest.raises(StoreError) as error:
            await connection.open()
        assert "secret" not in str(error.value)
        assert not isinstance(error.value, StoreUnavailable)
        await connection.close()

    asyncio.run(scenario())


def test_redis_cli_shows_what_the_handbook_names(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with _replica(redis) as one:
            await one.ready(_record(), adapter)

    asyncio.run(scenario())
    prefix = f"perk:{_FINGERPRINT[:16]}"
    assert redis.cli("HGET", _key(), "status").strip() == '"ready"'
    assert redis.cli("ZCARD", f"{prefix}:owner::documents").strip() == "1"
    assert redis.cli("ZCARD", f"{prefix}:queued").strip() == "0"
    # What Redis itself needs beside that depends on how its buffers happened to be filled.
    names = redis.cli("HKEYS", _key(0, "adapter")).split()
    assert sum(int(redis.cli("HSTRLEN", _key(0, "adapter"), name)) for name in names) < 2 * _SIZE + 512
