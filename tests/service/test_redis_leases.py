"""Leases and news in a real Redis: one replica at a time has a document, and all hear of it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from service.errors import LeaseLost
from service.store.protocol import Readiness
from service.store.redis_leases import News
from tests.service.records import SUMMARY, make_record
from tests.service.replica import PATIENCE_SECONDS, nothing, open_replica, redis_key, until


def test_only_one_replica_has_a_document_until_it_lets_go(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one, open_replica(redis) as other:
            await one.store.add(make_record(), "text")
            assert await one.leases.take(make_record().id, nothing) == "taken"
            assert await other.leases.take(make_record().id, nothing) == "elsewhere"
            one.leases.tell(make_record().id, {"done": 0.5})

            async def told() -> bool:
                return (await other.leases.progress([make_record().id])) == {make_record().id: {"done": 0.5}}

            await until(told)
            await one.leases.release(make_record().id)
            assert await other.leases.progress([make_record().id]) == {}
            assert await other.leases.take(make_record().id, nothing) == "taken"
            await other.store.mark_failed(make_record().id, "reason")
            assert await one.leases.take(make_record().id, nothing) == "over"

    asyncio.run(scenario())


def test_a_lease_is_renewed_and_ends_with_its_holder(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis, lease_seconds=0.4) as one, open_replica(redis, lease_seconds=0.4) as other:
            await one.store.add(make_record(), "text")
            assert await one.leases.take(make_record().id, nothing) == "taken"
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                assert await other.leases.take(make_record().id, nothing) == "elsewhere"
                await asyncio.sleep(0.05)
            held = one.leases._held[make_record().id]
            assert held.renewing is not None
            # As if the process were gone.
            held.renewing.cancel()

            async def taken_over() -> bool:
                return await other.leases.take(make_record().id, nothing) == "taken"

            await until(taken_over)
            await other.leases.release(make_record().id)

    asyncio.run(scenario())


def test_a_lease_can_be_released_at_any_moment_of_its_renewal(redis: Any) -> None:
    async def scenario() -> None:
        rng = random.Random(0)
        async with open_replica(redis) as one:
            await one.store.add(make_record(), "text")
            # About one in twenty cancellations came as a command ended, and was lost.
            for _ in range(300):
                assert await one.leases.take(make_record().id, nothing) == "taken"
                one.leases.tell(make_record().id, {})
                await asyncio.sleep(rng.random() * 0.004)
                await asyncio.wait_for(one.leases.release(make_record().id), timeout=PATIENCE_SECONDS)

    asyncio.run(scenario())


def test_who_has_lost_its_lease_is_told_and_cannot_write(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis, lease_seconds=0.4) as one, open_replica(redis) as other:
            lost = asyncio.Event()
            await one.store.add(make_record(), "text")
            assert await one.leases.take(make_record().id, lost.set) == "taken"
            redis.client.delete(redis_key(0, "lease"))
            claim = await other.leases.take(make_record().id, nothing)
            assert claim == "taken"

            with pytest.raises(LeaseLost):
                await one.store.put(make_record().id, adapter)
            with pytest.raises(LeaseLost):
                await one.store.mark_ready(make_record().id, Readiness(3, 1, 200.0, None, SUMMARY))
            await one.store.mark_failed(make_record().id, "late")
            async with asyncio.timeout(PATIENCE_SECONDS):
                await lost.wait()
            assert one.counted("perk_leases_lost_total") == 1
            assert await other.store.find(make_record().id) == make_record()

            await other.store.put(make_record().id, adapter)
            await other.store.mark_ready(make_record().id, Readiness(3, 1, 200.0, None, SUMMARY))
            with pytest.raises(LeaseLost):
                await one.store.put(make_record().id, adapter + 1)
            await one.leases.release(make_record().id)
            await other.leases.release(make_record().id)
            found = await one.store.get(make_record().id)
            assert found is not None
            assert torch.equal(found, adapter.bfloat16().float())
            assert not [name for name in redis.names() if ":adapter:" in name], "a refused adapter is left behind"

    asyncio.run(scenario())


def test_a_lease_that_ended_unnoticed_is_taken_up_again_where_no_one_else_has(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.store.add(make_record(), "text")
            assert await one.leases.take(make_record().id, nothing) == "taken"
            redis.client.delete(redis_key(0, "lease"))
            await one.store.put(make_record().id, adapter)
            await one.store.mark_ready(make_record().id, Readiness(3, 1, 200.0, None, SUMMARY))
            await one.leases.release(make_record().id)

    asyncio.run(scenario())
    assert redis.client.hget(redis_key(), "status") == b'"ready"'


def test_replicas_hear_of_one_another(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one, open_replica(redis) as other:
            news = other.leases.news()
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await anext(news) == News("missed", "")
                await one.store.add(make_record(), "text")
                assert await anext(news) == News("queued", make_record().id)
                # A connection that was cut is opened again, and may have missed something.
                redis.client.client_kill_filter(_type="pubsub")
                assert await anext(news) == News("missed", "")
                await one.store.delete(make_record().id)
                assert await anext(news) == News("deleted", make_record().id)
            await news.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())
