"""A real Redis whose values are damaged, or that is away, full or locked: told, counted, and nothing half written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from torch import Tensor

from service.errors import DamagedText, StorageFull, StoreError, StoreUnavailable
from service.metrics import Metrics
from service.store.redis_connection import RedisConnection
from tests.service.records import make_record
from tests.service.replica import PATIENCE_SECONDS, nothing, open_replica, redis_key


def _flip(redis: Any) -> None:
    chunk = bytearray(redis.client.hget(redis_key(0, "adapter"), "chunk:1"))
    chunk[7] ^= 0xFF
    redis.client.hset(redis_key(0, "adapter"), "chunk:1", bytes(chunk))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip, "checksum"),
        (lambda redis: redis.client.hdel(redis_key(0, "adapter"), "chunk:2"), "missing"),
        (lambda redis: redis.client.hset(redis_key(0, "adapter"), "chunks", "99999999999"), "missing"),
        (lambda redis: redis.client.hset(redis_key(0, "adapter"), "chunks", "many"), "format"),
        (lambda redis: redis.client.hdel(redis_key(0, "adapter"), "sha256"), "checksum"),
        (lambda redis: redis.client.set(redis_key(0, "adapter"), "something else"), "format"),
    ],
)
def test_a_damaged_adapter_is_dropped_and_counted(
    redis: Any, adapter: Tensor, damage: Callable[[Any], object], reason: str
) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.ready(make_record(), adapter)
            damage(redis)
            assert await one.store.get(make_record().id) is None
            assert one.counted("perk_adapters_dropped_total", reason=reason) == 1
            assert redis.client.exists(redis_key(0, "adapter")) == 0
            assert await one.store.get(make_record().id) is None

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "damage",
    [
        lambda redis: redis.client.hset(redis_key(), "tokens", "{"),
        lambda redis: redis.client.hdel(redis_key(), "bytes"),
        lambda redis: redis.client.set(redis_key(), "something else"),
    ],
)
def test_a_document_whose_record_is_damaged_can_be_sent_again(redis: Any, damage: Callable[[Any], object]) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.store.add(make_record(), "text")
            damage(redis)
            assert await one.store.find(make_record().id) is None
            assert await one.store.add(make_record(), "text") == (make_record(), True)
            assert await one.store.find(make_record().id) == make_record()
            assert await one.store.text(make_record().id) == "text"

    asyncio.run(scenario())


def test_a_damaged_text_is_told(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.store.add(make_record(), "text")
            redis.client.set(redis_key(0, "text"), b"\x00")
            with pytest.raises(DamagedText):
                await one.store.text(make_record().id)

    asyncio.run(scenario())


def test_a_cut_connection_is_not_noticed(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.store.add(make_record(), "text")
            for _ in range(5):
                redis.client.client_kill_filter(_type="normal", skipme=True)
                assert await one.store.find(make_record().id) == make_record()
            assert one.connection.available

    asyncio.run(scenario())


def test_redis_away_is_told_at_once_and_found_again(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.store.add(make_record(), "text")
            back = asyncio.Event()
            watching = asyncio.create_task(one.connection.watch(back.set))
            redis.kill()
            with pytest.raises(StoreUnavailable):
                await one.store.find(make_record().id)
            assert one.counted("perk_redis_up") == 0
            started = time.monotonic()
            for _ in range(100):
                with pytest.raises(StoreUnavailable):
                    await one.store.find(make_record().id)
            assert time.monotonic() - started < 1, "each command tried to connect anew"
            redis.start()
            async with asyncio.timeout(PATIENCE_SECONDS):
                await back.wait()
            assert await one.store.find(make_record().id) == make_record(), "Redis has forgotten a document"
            assert one.counted("perk_redis_up") == 1
            watching.cancel()

    asyncio.run(scenario())


def test_a_full_redis_is_told_and_nothing_is_half_written(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.store.add(make_record(1), "text")
            assert await one.leases.take(make_record(1).id, nothing) == "taken"
            before = redis.names()
            redis.client.config_set("maxmemory", "1")
            try:
                with pytest.raises(StorageFull):
                    await one.store.add(make_record(2), "text")
                with pytest.raises(StorageFull):
                    await one.store.put(make_record(1).id, adapter)
                assert await one.store.find(make_record(1).id) == make_record(1)
            finally:
                redis.client.config_set("maxmemory", "0")
            assert redis.names() == before
            await one.store.put(make_record(1).id, adapter)
            await one.leases.release(make_record(1).id)

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
