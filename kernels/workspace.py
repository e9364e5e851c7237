"""Memory for the tensors of a pass, which the next pass uses again.

A tensor of some megabytes is memory that the system hands out anew each time, page by page as it is first touched: for
the layers of a small model on a CPU that can take as long as an eighth of their arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Workspace"]

# So large that malloc returns it to the system as soon as it is freed; what is never touched costs nothing.
_SLAB_BYTES = 64 << 20
# Tensors begin at multiples of a cache line.
_LINE_BYTES = 64


class Workspace:
    """Hands out tensors on the CPU, until `reset` takes all of them back at once. Not thread-safe."""

    def __init__(self) -> None:
        """Reserve nothing yet."""
        self._slabs: list[Tensor] = []
        self._slab = self._used = 0

    def take(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A tensor of that shape; its values are left over from an earlier one."""
        size = math.prod(shape) * dtype.itemsize
        while self._slab < len(self._slabs):
            slab = self._slabs[self._slab]
            if self._used + size <= slab.numel():
                start = self._used
                self._used += -(-size // _LINE_BYTES) * _LINE_BYTES
                return slab[start : start + size].view(dtype).view(shape)
            self._slab, self._used = self._slab + 1, 0
        self._slabs.append(torch.empty(max(size, _SLAB_BYTES), dtype=torch.uint8))
        return self.take(*shape, dtype=dtype)

    def cast(self, tensor: Tensor, dtype: torch.dtype, *, rows: int | None = None) -> Tensor:
        """The tensor itself where it is of that type and has so many rows (default: its own), else a `copy`."""
        rows = tensor.shape[0] if rows is None else rows
        return tensor if (tensor.dtype, tensor.shape[0]) == (dtype, rows) else self.copy(tensor, dtype, rows=rows)

    def copy(self, tensor: Tensor, dtype: torch.dtype, *, rows: int) -> Tensor:
        """The same numbers in that type, and rows of zeros after them."""
        length = tensor.shape[0]
        copy = self.take(rows, *tensor.shape[1:], dtype=dtype)
        copy[:length].copy_(tensor)
        copy[length:].zero_()
        return copy

    def reset(self) -> None:
        """Begin again from the start: whatever was taken will be overwritten."""
        self._slab = self._used = 0
