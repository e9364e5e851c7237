"""What documents' adapters have said of their parts: as long as one is in memory, it need not say it again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from perk.part_recital import PartRecital

__all__ = ["RecalledParts"]


class RecalledParts:
    """Parts by the adapter that they were recalled from. It is not kept here, and they go with it."""

    def __init__(self) -> None:
        """Know none."""
        self._said: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # A recital holds its adapter: it belongs to the questions that wait for it, and goes with the last of them.
        self._running: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @property
    def count(self) -> int:
        """Adapters of which something is kept."""
        return len(self._said)

    def get(self, adapter: Tensor) -> tuple[str, ...] | None:
        """What was recalled, as `PartRecital.said`; None where nothing has been asked for."""
        said: tuple[str, ...] | None = self._said.get(adapter)
        return said

    def put(self, adapter: Tensor, said: tuple[str, ...]) -> None:
        """Keep what was recalled, as long as that very tensor is in memory."""
        self._said[adapter] = said

    def recital(self, adapter: Tensor, begin: Callable[[], PartRecital]) -> PartRecital:
        """The recital that another question about that very tensor waits for, or a new one."""
        running: PartRecital | None = self._running.get(adapter, lambda: None)()
        if running is None:
            running = begin()
            self._running[adapter] = weakref.ref(running)
        return running
