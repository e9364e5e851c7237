"""Who gets the model next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.engine.flight import Flight
from service.engine.waiting_line import WaitingLine
from service.store.record import DocumentRecord


def _flight(name: str, owner: str = "", size: int = 10) -> Flight:
    record = DocumentRecord(
        id=name,
        fingerprint="f",
        status="queued",
        title=None,
        metadata={},
        bytes=size,
        tokens=1,
        created_at=0.0,
        owner=owner,
    )
    return Flight(record, again=False)


def _names(line: WaitingLine, wanted: Callable[[Flight], bool] = lambda _: True) -> list[str]:
    names = []
    while (flight := line.pop(wanted)) is not None:
        names.append(flight.document_id)
    return names


def test_owners_take_turns_and_what_a_question_waits_for_goes_first() -> None:
    async def scenario() -> None:
        line = WaitingLine()
        for name in ("a1", "a2", "a3", "b1", "b2"):
            line.add(_flight(name, owner=name[0]))
        line.add(_flight("asked", owner="a"), first=True)
        expected = ["asked", "a1", "b1", "a2", "b2", "a3"]

        assert len(line) == 6
        assert [flight.document_id for flight in line] == expected
        assert _names(line) == expected
        assert len(line) == 0

    asyncio.run(scenario())


def test_what_is_not_wanted_keeps_its_place() -> None:
    async def scenario() -> None:
        line = WaitingLine()
        for flight in (_flight("long", size=100_000), _flight("short"), _flight("other")):
            line.add(flight)
        line.add(_flight("asked", size=100_000), first=True)

        assert _names(line, lambda flight: flight.is_short) == ["short", "other"]
        assert _names(line) == ["asked", "long"]

    asyncio.run(scenario())


def test_what_is_taken_out_is_not_there_any_more() -> None:
    async def scenario() -> None:
        line = WaitingLine()
        first, other = _flight("first"), _flight("other")
        line.add(first, first=True)
        line.add(other)

        assert line.remove(first)
        assert line.remove(other)
        assert not line.remove(other)
        assert len(line) == 0

    asyncio.run(scenario())
