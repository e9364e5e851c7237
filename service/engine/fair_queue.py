"""A queue that many owners share: each gets its turn, however many items another has in it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each owner; the owners take turns. Not thread-safe: its user locks."""

    def __init__(self) -> None:
        # The owner whose turn is next stands first; owners without items do not stand here.
        self._items: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(items) for items in self._items.values())

    def __iter__(self) -> Iterator[T]:
        """All items, in the order of turns."""
        rounds = [deque(items) for items in self._items.values()]
        while rounds:
            for items in rounds:
                yield items.popleft()
            rounds = [items for items in rounds if items]

    def add(self, owner: str, item: T) -> None:
        """Take an item."""
        self._items.setdefault(owner, deque()).append(item)

    def pop(self, wanted: Callable[[T], bool] = lambda _: True) -> T | None:
        """Take out the first item, in order of turns, that is `wanted`; None where there is none."""
        for owner in list(self._items):
            items = self._items[owner]
            for item in items:
                if wanted(item):
                    items.remove(item)
                    self._items.move_to_end(owner)
                    if not items:
                        del self._items[owner]
                    return item
        return None

    def drop(self, unwanted: Callable[[T], bool]) -> None:
        """Take out all items that are unwanted."""
        for owner, items in list(self._items.items()):
            kept = deque(item for item in items if not unwanted(item))
            if kept:
                self._items[owner] = kept
            else:
                del self._items[owner]
