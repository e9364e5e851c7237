"""The tier in memory: what was used last is at hand, and what is not is read once from below."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import torch
from torch import Tensor

from service.metrics import Metrics
from service.store.memory import MemoryTier

_SIZE = 1000


class CountingTier:
    """A tier that counts reads, and can be made to wait."""

    def __init__(self, adapters: dict[str, Tensor]) -> None:
        self.adapters = adapters
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, document_id: str) -> Tensor | None:
        self.reads += 1
        adapter = self.adapters.get(document_id)
        await self.gate.wait()
        return adapter

    async def put(self, document_id: str, adapter: Tensor) -> Tensor:
        self.adapters[document_id] = adapter
        return adapter

    async def drop(self, document_id: str, reason: str) -> None:
        assert reason
        self.adapters.pop(document_id, None)


def _memory(below: CountingTier, room_for: int) -> tuple[MemoryTier, Callable[[str], float]]:
    metrics = Metrics()
    tier = MemoryTier(below, budget=room_for * 4 * _SIZE, metrics=metrics)
    return tier, lambda name: metrics.registry.get_sample_value(name, {"tier": "memory"}) or 0.0


def test_memory_holds_the_adapters_used_last() -> None:
    async def scenario() -> None:
        below = CountingTier({name: torch.full((_SIZE,), float(index)) for index, name in enumerate("abc")})
        tier, value = _memory(below, room_for=2)
        for name in "abac":
            found = await tier.get(name)
            assert found is not None
            assert torch.equal(found, below.adapters[name])
        assert below.reads == 3
        assert value("perk_tier_bytes") == 2 * 4 * _SIZE
        assert value("perk_tier_evictions_total") == 1

        await tier.get("a")
        assert below.reads == 3, "used twice, a has stayed"
        await tier.get("b")
        assert below.reads == 4, "and b has gone"

    asyncio.run(scenario())


def test_an_adapter_larger_than_the_budget_is_read_each_time() -> None:
    async def scenario() -> None:
        below = CountingTier({"a": torch.zeros(_SIZE)})
        tier, value = _memory(below, room_for=0)
        assert await tier.get("a") is not None
        assert await tier.get("a") is not None
        assert below.reads == 2
        assert value("perk_tier_bytes") == 0

    asyncio.run(scenario())


def test_what_is_written_is_kept_below_and_at_hand() -> None:
    async def scenario() -> None:
        below = CountingTier({})
        tier, _ = _memory(below, room_for=2)
        await tier.put("a", torch.ones(_SIZE))
        assert "a" in below.adapters
        assert await tier.get("a") is not None
        assert below.reads == 0
        await tier.drop("a", "expired")
        assert await tier.get("a") is None
        assert "a" not in below.adapters

    asyncio.run(scenario())


def test_questions_that_miss_the_same_adapter_read_it_once() -> None:
    async def scenario() -> None:
        below = CountingTier({"a": torch.ones(_SIZE)})
        below.gate.clear()
        tier, _ = _memory(below, room_for=2)
        reads = [asyncio.create_task(tier.get("a")) for _ in range(5)]
        await asyncio.sleep(0)
        reads[0].cancel()
        below.gate.set()
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert below.reads == 1
        assert isinstance(found[0], asyncio.CancelledError)
        assert all(torch.is_tensor(adapter) for adapter in found[1:]), "a client that goes does not end the read"

    asyncio.run(scenario())


def test_an_adapter_forgotten_while_it_is_read_is_not_held() -> None:
    async def scenario() -> None:
        below = CountingTier({"a": torch.ones(_SIZE)})
        below.gate.clear()
        tier, value = _memory(below, room_for=2)
        read = asyncio.create_task(tier.get("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tier.forget("a")
        below.gate.set()
        await read
        assert value("perk_tier_bytes") == 0

    asyncio.run(scenario())


def test_it_is_told_what_comes_to_hand_and_only_that() -> None:
    async def scenario() -> None:
        below = CountingTier({"a": torch.ones(_SIZE), "large": torch.ones(9 * _SIZE)})
        held: list[tuple[str, Tensor]] = []

        def note(document_id: str, adapter: Tensor) -> None:
            held.append((document_id, adapter))

        tier = MemoryTier(below, budget=2 * 4 * _SIZE, metrics=Metrics(), on_held=note)
        for name in ("a", "a", "large", "missing"):
            await tier.get(name)
        await tier.put("b", torch.zeros(_SIZE))
        assert [name for name, _ in held] == ["a", "b"]
        for name, adapter in held:
            assert await tier.get(name) is adapter, "the very tensor that questions have"

    asyncio.run(scenario())
