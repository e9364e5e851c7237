"""Adapters of the rows that the modules decode, side by side in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["AdapterPlaces"]


class AdapterPlaces:
    """Copies an adapter to its row's place only if another one stands there: most rows stay where they are."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        """Prepare for adapters ``[P]`` of that size; memory is taken when the first row has one."""
        self._size = size
        self._device = device
        self._dtype = dtype
        # [at least R, P]; None while no row has had an adapter.
        self._places: Tensor | None = None
        # Which tensor each place was copied from; an adapter of zeros, which changes nothing, from none.
        self._copied: list[Tensor | None] = []

    def put(self, adapters: Sequence[Tensor | None]) -> Tensor | None:
        """Adapters of R rows, ``[R, P]``, zeros for those that have none; None while no row has had one."""
        if self._places is None and all(adapter is None for adapter in adapters):
            return None
        missing = len(adapters) - len(self._copied)
        if missing > 0:
            # Twice as many each time, so that few places are copied again and again.
            more = torch.zeros(max(missing, len(self._copied)), self._size, device=self._device, dtype=self._dtype)
            self._places = more if self._places is None else torch.cat([self._places, more])
            self._copied += [None] * len(more)
        assert self._places is not None
        for place, adapter in enumerate(adapters):
            if adapter is not self._copied[place]:
                self._places[place] = 0 if adapter is None else adapter.to(self._places)
                self._copied[place] = adapter
        return self._places[: len(adapters)]
