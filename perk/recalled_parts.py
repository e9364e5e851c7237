"""What documents' adapters have said of their parts: as long as one is in memory, it need not say it again."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["RecalledParts"]


class RecalledParts:
    """Parts by the adapter that they were recalled from. It is not kept here, and they go with it."""

    def __init__(self) -> None:
        """Know none."""
        self._said: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

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
