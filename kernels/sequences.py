"""Sequences among the rows of a matrix, and the rotary position embedding of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, mul

__all__ = ["Rotation", "Sequences"]


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding: cosines and sines of half a head's angles.

    Attributes:
        cos: ``[T, 1, head / 2]`` or ``[1, T, 1, head / 2]``; ``[S, T, 1, head / 2]`` where each sequence has its own
            positions.
        sin: the same shape.
    """

    cos: Tensor
    sin: Tensor

    @property
    def length(self) -> int:
        """T."""
        return self.cos.shape[-3]

    def first(self, length: int) -> Rotation:
        """The same of the first positions alone."""
        return Rotation(self.cos[..., :length, :, :], self.sin[..., :length, :, :])

    def apply(self, pairs: Tensor, into: Tensor, *, backward: bool = False) -> Tensor:
        """Rotate ``[S, T, heads, head]``, or back, as the gradient is; writes to `into`."""
        half = pairs.shape[-1] // 2
        sign = -1 if backward else 1
        first, second = pairs[..., :half], pairs[..., half:]
        mul(first, self.cos, out=into[..., :half]).addcmul_(second, self.sin, value=-sign)
        mul(second, self.cos, out=into[..., half:]).addcmul_(first, self.sin, value=sign)
        return into


@dataclass(frozen=True)
class Sequences:
    """S sequences of T tokens, which follow one another in the rows of a matrix.

    Attributes:
        start: row of the first token.
        count: S.
        rotation: of the T positions of each.
    """

    start: int
    count: int
    rotation: Rotation

    @property
    def stop(self) -> int:
        """Row behind the last token."""
        return self.start + self.count * self.rotation.length

    def of(self, rows: Tensor) -> Tensor:
        """Their part of ``[N, …]``, as ``[S, T, …]``."""
        own = rows[self.start : self.stop]
        return own.view(self.count, self.rotation.length, *rows.shape[1:])
