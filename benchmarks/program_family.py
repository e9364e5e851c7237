"""Programs of a launch that make the same accesses, each further on in memory: a few are interpreted.

In a blocked product, consecutive programs do the same for one block of tokens (or of columns) after the other: the n-th
access of each touches what that of the program before did, a fixed number of bytes further on. So two programs of such
a family say what all do. The last one, which a mask may cut short, is interpreted as well, and the one before it, for a
check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Tile", "choose_programs", "complete_family"]


@dataclass(frozen=True)
class Tile:
    """A load or a store, byte by byte.

    Attributes:
        store: it is a store.
        starts: first addresses of its runs of consecutive bytes, ``[runs]`` int64.
        lengths: bytes in each of them, ``[runs]`` int64.
        evict_first: it is a load whose bytes the cache is told not to keep.
    """

    store: bool
    starts: Any
    lengths: Any
    evict_first: bool = False

    def moved(self, distance: int) -> Tile:
        """The same further on by `distance` bytes."""
        return replace(self, starts=self.starts + distance)

    def same(self, other: Tile) -> bool:
        """Whether both touch the same bytes in the same way."""
        return (
            (self.store, self.evict_first) == (other.store, other.evict_first)
            and np.array_equal(self.starts, other.starts)
            and np.array_equal(self.lengths, other.lengths)
        )


def choose_programs(count: int) -> list[int]:
    """Which programs of a family of `count` have to be interpreted: the first two and the last two."""
    return sorted({number for number in (0, 1, count - 2, count - 1) if 0 <= number < count})


def complete_family(recorded: Mapping[int, Sequence[Tile]], count: int) -> list[Sequence[Tile]]:
    """The accesses of all programs of a family.

    Args:
        recorded: accesses of the programs of `choose_programs`.
        count: programs of the family.

    Raises:
        RuntimeError: the programs are not one another's translations.
    """
    if count <= 4:
        return [recorded[number] for number in range(count)]
    first, second = recorded[0], recorded[1]
    if len(first) != len(second):
        raise RuntimeError(f"programs of {len(first)} and {len(second)} accesses are no translations of one another")
    # A tile whose mask leaves nothing of it does not move.
    distances = [
        int(other.starts[0] - tile.starts[0]) if len(tile.starts) and len(other.starts) else 0
        for tile, other in zip(first, second, strict=True)
    ]

    def derive(number: int) -> list[Tile]:
        return [tile.moved(number * distance) for tile, distance in zip(first, distances, strict=True)]

    for number in (1, count - 2):
        derived = derive(number)
        if len(derived) != len(recorded[number]) or not all(map(Tile.same, derived, recorded[number])):
            raise RuntimeError(f"program {number} of {count} is no translation of the first one")
    return [recorded[number] if number in recorded else derive(number) for number in range(count)]
