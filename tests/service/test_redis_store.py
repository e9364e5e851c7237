"""Documents and adapters in a real Redis: what is kept, by whom it is seen, and for how long."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import torch
from torch import Tensor

from service.store.protocol import Place, Readiness
from tests.service.records import ADAPTER_SIZE, FINGERPRINT, SUMMARY, make_record
from tests.service.replica import CHUNK_BYTES, nothing, open_replica, redis_key


def test_records_texts_and_counts_are_shared(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one, open_replica(redis) as other:
            assert await one.store.add(make_record(1), "text one α") == (make_record(1), True)
            assert await other.store.add(make_record(1, created_at=7.0), "text one α") == (make_record(1), False)
            await one.ready(make_record(2), adapter, expires_at=300.5)
            await one.store.add(make_record(3), "text three")
            await one.store.mark_failed(make_record(3).id, "for a reason")

            ready = make_record(
                2, status="ready", tokens=3, segments=1, ready_at=200.0, expires_at=300.5, encode=SUMMARY
            )
            failed = make_record(3, status="failed", error="for a reason")
            assert await other.store.find(ready.id) == ready
            assert await other.store.text(make_record(1).id) == "text one α"
            assert await other.store.page(10, None) == [failed, ready, make_record(1)]
            assert await other.store.page(1, Place(failed.created_at, failed.id)) == [ready]
            assert await other.store.page(10, Place(ready.created_at, ready.id)) == [make_record(1)]
            assert await other.store.queued() == [make_record(1).id]
            assert await other.store.counts() == {"queued": 1, "ready": 1, "failed": 1}
            assert (await other.store.add(make_record(3), "text three"))[0].status == "queued"
            await other.store.drop(ready.id, "expired")
            await other.store.mark_queued(ready.id)
            assert await one.store.find(ready.id) == make_record(2, tokens=3, ready_at=200.0)

    asyncio.run(scenario())


def test_documents_of_one_moment_are_listed_once_each(redis: Any) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            for number in range(5):
                await one.store.add(make_record(number, created_at=1 / 3), "text")
            seen: list[str] = []
            place: Place | None = None
            while page := await one.store.page(2, place):
                seen += [record.id for record in page]
                place = Place(page[-1].created_at, page[-1].id)
            assert seen == [make_record(number).id for number in (4, 3, 2, 1, 0)]

    asyncio.run(scenario())


def test_every_owner_has_lists_of_its_own_and_deletes_only_from_them(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one, open_replica(redis, fingerprint="e" * 64) as stranger:
            ann, bob = make_record(1, owner="ann", text_id=make_record(9).id), make_record(2, owner="bob")
            await one.ready(ann, adapter)
            await one.store.add(bob, "text")

            found = await one.store.find(ann.id)
            assert found is not None
            assert (found.owner, found.text_id) == ("ann", make_record(9).id)
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
        async with open_replica(redis, adapter_ttl=1000) as one, open_replica(redis) as other:
            kept = await one.ready(make_record(), adapter)
            assert torch.equal(kept, adapter.bfloat16().float())
            found = await other.store.get(make_record().id)
            assert found is not None
            assert torch.equal(found, kept)

    asyncio.run(scenario())
    fields = redis.client.hgetall(redis_key(0, "adapter"))
    chunks = [value for name, value in fields.items() if name.startswith(b"chunk:")]
    assert len(chunks) > 4
    assert max(map(len, chunks)) == CHUNK_BYTES
    assert 990_000 < redis.client.pttl(redis_key(0, "adapter")) <= 1_000_000
    assert redis.client.ttl(redis_key()) == redis.client.ttl(redis_key(0, "text")) == -1, (
        "record and text must not expire"
    )
    assert redis.names() == {
        "perk:fingerprints",
        redis_key(),
        redis_key(0, "text"),
        redis_key(0, "adapter"),
        f"perk:{FINGERPRINT[:16]}:owner::documents",
        f"perk:{FINGERPRINT[:16]}:owner::ready",
        f"perk:{FINGERPRINT[:16]}:ready",
    }


def test_the_use_of_an_adapter_prolongs_its_time_but_never_shortens_it(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis, adapter_ttl=100) as one:
            now = time.time()
            await one.ready(make_record(), adapter, expires_at=now + 100)
            await one.store.touch(make_record().id, now + 500)
            await one.store.touch(make_record().id, now + 50)
            record = await one.store.find(make_record().id)
            assert record is not None
            assert record.expires_at == now + 500

    asyncio.run(scenario())
    assert 400_000 < redis.client.pttl(redis_key(0, "adapter")) <= 500_000


def test_what_is_deleted_leaves_nothing_and_does_not_come_back(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one, open_replica(redis, fingerprint="e" * 64) as stranger:
            await one.ready(make_record(1), adapter)
            await one.store.add(make_record(2), "text")
            assert await one.leases.take(make_record(2).id, nothing) == "taken"
            assert await one.store.delete(make_record(1).id)
            assert await stranger.store.delete(make_record(2).id), "under whatever fingerprint"
            await one.store.put(make_record(2).id, adapter)
            await one.store.mark_ready(make_record(2).id, Readiness(3, 1, 200.0, None, SUMMARY))
            await one.leases.release(make_record(2).id)
            assert not await one.store.delete(make_record(1).id)

    asyncio.run(scenario())
    assert redis.names() == {"perk:fingerprints"}


def test_redis_cli_shows_what_the_handbook_names(redis: Any, adapter: Tensor) -> None:
    async def scenario() -> None:
        async with open_replica(redis) as one:
            await one.ready(make_record(), adapter)

    asyncio.run(scenario())
    prefix = f"perk:{FINGERPRINT[:16]}"
    assert redis.cli("HGET", redis_key(), "status").strip() == '"ready"'
    assert redis.cli("ZCARD", f"{prefix}:owner::documents").strip() == "1"
    assert redis.cli("ZCARD", f"{prefix}:queued").strip() == "0"
    # What Redis itself needs beside that depends on how its buffers happened to be filled.
    names = redis.cli("HKEYS", redis_key(0, "adapter")).split()
    assert sum(int(redis.cli("HSTRLEN", redis_key(0, "adapter"), name)) for name in names) < 2 * ADAPTER_SIZE + 512
