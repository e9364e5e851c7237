"""Adapters in host memory, in front of a tier that keeps them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from service.metrics import Metrics
from service.store.protocol import AdapterTier

__all__ = ["MemoryTier"]


class MemoryTier:
    """An `AdapterTier` that holds the adapters used last, up to a number of bytes. One event loop owns it."""

    def __init__(
        self,
        below: AdapterTier,
        *,
        budget: int,
        metrics: Metrics,
        below_name: str = "disk",
        on_held: Callable[[str, Tensor], None] | None = None,
    ) -> None:
        """Start empty.

        Args:
            below: the tier that keeps what is written and knows what is not here.
            budget: most bytes of adapters held.
            metrics: where reads, bytes and evictions are counted.
            below_name: of the tier below, for the metrics.
            on_held: called with the id of each document whose adapter comes to be here, and the adapter.
        """
        self._below = below
        self._below_name = below_name
        self._on_held = on_held
        self._budget = budget
        self._metrics = metrics
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._reading: dict[str, asyncio.Task[Tensor | None]] = {}

    async def get(self, document_id: str) -> Tensor | None:
        """As `AdapterTier.get`; questions that miss the same adapter read it once."""
        if document_id in self._held:
            self._held.move_to_end(document_id)
            self._metrics.adapter_reads.labels("memory").inc()
            return self._held[document_id]
        reading = self._reading.get(document_id)
        if reading is None:
            reading = asyncio.create_task(self._read(document_id))
            self._reading[document_id] = reading
        # The read serves others too: a client that goes must not end it.
        return await asyncio.shield(reading)

    async def put(self, document_id: str, adapter: Tensor) -> Tensor:
        """As `AdapterTier.put`."""
        kept = await self._below.put(document_id, adapter)
        # What is answered with now is what will be answered with when it has been evicted and read again.
        self._hold(document_id, kept)
        return kept

    async def drop(self, document_id: str, reason: str) -> None:
        """As `AdapterTier.drop`."""
        self.forget(document_id)
        await self._below.drop(document_id, reason)

    @property
    def held(self) -> list[str]:
        """Ids of the documents whose adapters are here."""
        return list(self._held)

    def forget(self, document_id: str) -> None:
        """Let go of an adapter here, and of a read of it that is under way; the tier below is not asked."""
        self._reading.pop(document_id, None)
        adapter = self._held.pop(document_id, None)
        if adapter is not None:
            self._add_bytes(-adapter.nbytes)

    async def _read(self, document_id: str) -> Tensor | None:
        try:
            adapter = await self._below.get(document_id)
        finally:
            # Forgotten meanwhile: what was read is of a document that may be gone.
            current = self._reading.get(document_id) is asyncio.current_task()
            if current:
                del self._reading[document_id]
        self._metrics.adapter_reads.labels("miss" if adapter is None else self._below_name).inc()
        if adapter is not None and current:
            self._hold(document_id, adapter)
        return adapter

    def _hold(self, document_id: str, adapter: Tensor) -> None:
        self.forget(document_id)
        if adapter.nbytes > self._budget:
            return
        self._held[document_id] = adapter
        self._add_bytes(adapter.nbytes)
        while self._bytes > self._budget:
            _, evicted = self._held.popitem(last=False)
            self._add_bytes(-evicted.nbytes)
            self._metrics.tier_evictions.labels("memory").inc()
        if self._on_held is not None and document_id in self._held:
            self._on_held(document_id, adapter)

    def _add_bytes(self, count: int) -> None:
        self._bytes += count
        self._metrics.tier_bytes.labels("memory").set(self._bytes)
