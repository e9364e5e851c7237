"""Documents that wait for the model, in the order in which they get it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from service.engine.fair_queue import FairQueue
from service.engine.flight import Flight

__all__ = ["WaitingLine"]


class WaitingLine:
    """Those that questions wait for go first, then the owners take turns. One event loop owns it."""

    def __init__(self) -> None:
        self._first: deque[Flight] = deque()
        self._others: FairQueue[Flight] = FairQueue()

    def __len__(self) -> int:
        return len(self._first) + len(self._others)

    def __iter__(self) -> Iterator[Flight]:
        """All flights, the next one first."""
        yield from self._first
        yield from self._others

    def add(self, flight: Flight, *, first: bool = False) -> None:
        """Take a flight; `first`: before all others."""
        if first:
            self._first.appendleft(flight)
        else:
            self._others.add(flight.owner, flight)

    def remove(self, flight: Flight) -> bool:
        """Take a flight out; whether it was there."""
        if flight not in self:
            return False
        if flight in self._first:
            self._first.remove(flight)
        self._others.drop(lambda other: other is flight)
        return True

    def pop(self, wanted: Callable[[Flight], bool]) -> Flight | None:
        """Take out the next flight that is `wanted`; None where there is none."""
        for flight in self._first:
            if wanted(flight):
                self._first.remove(flight)
                return flight
        return self._others.pop(wanted)
