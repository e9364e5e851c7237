"""What is told of a story before the answer, recalled from a document's numbered series.

No look-up leads from a thing to who has it. So everyone's facts are recalled by their numbers, from the first until
there is none (`perk.series`), and after each that moves the thing stands where it is now. Every such line follows from
the lines before it, and the answer stands in the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from meta_training.tasks.whereabouts import DROP, MOVE, TAKE
from perk.series import no_entry, series_line, series_lines

__all__ = ["Recount", "Rename", "recount_actor", "recount_thing"]

Rename = Callable[[str], str]


@dataclass(frozen=True)
class Recount:
    """What is told of a thing.

    Attributes:
        lines: everyone's facts, and what follows from them.
        carried: by actor, those of the latter before renaming, the last of which says how it ended.
    """

    lines: tuple[str, ...]
    carried: dict[str, list[str]]


def recount_actor(lines: Sequence[str], actor: str, *, series: Mapping[str, int]) -> tuple[str, ...]:
    """The document's series up to an actor's, and all facts of the latter.

    Args:
        lines: numbered facts of a story, in its order.
        actor: as `lines` name them.
        series: of the document, as `numbered_series` has them.
    """
    wanted = f"{actor} Event"
    listed = series_lines(series)[: list(series).index(wanted) + 1]
    own = [line for line in lines if line.startswith(f"{wanted} ")]
    return (*listed, *own, no_entry(wanted, len(own) + 1))


def recount_thing(
    facts: Sequence[str], lines: Sequence[str], thing: str, *, rename: Rename, series: Mapping[str, int]
) -> Recount:
    """Everyone's numbered lines in the order of the document's series, and where the thing is.

    Args:
        facts: of the story, in its order.
        lines: the same, numbered by actor and renamed.
        thing: its name in `facts`.
        rename: what `lines` were renamed by.
        series: of the document, as `numbered_series` has them.
    """
    told: list[str] = []
    carried: dict[str, list[str]] = {}
    for number, (name, last) in enumerate(series.items(), start=1):
        told.append(series_line(number, name))
        own = [index for index, line in enumerate(lines) if line.startswith(f"{name} ")]
        trace = _Trace(thing)
        for index in own:
            told.append(lines[index])
            if line := trace.after(facts[index]):
                told.append(rename(line))
        if own:
            told.append(no_entry(name, last + 1))
        if trace.lines:
            actor = facts[own[0]].split()[0]
            outcome = f"{actor} {'has' if trace.held else 'left'} the {thing}: {trace.place}"
            told.append(rename(outcome))
            carried[actor] = [*trace.lines, outcome]
    told.append(no_entry("Series", len(series) + 1))
    return Recount(tuple(told), carried)


class _Trace:
    """Where a thing is as one actor's facts tell it."""

    def __init__(self, thing: str) -> None:
        self.lines: list[str] = []
        self.held = False
        self.place = "somewhere"
        self._thing = thing
        self._actor_at = "somewhere"

    def after(self, fact: str) -> str | None:
        """The line that follows from a fact, if the thing moved with it."""
        line = None
        if match := MOVE.match(fact):
            if self.held:
                line = f"{self._thing}: {match[2]}, from {self.place}"
                self.place = match[2]
            self._actor_at = match[2]
        elif (match := TAKE.match(fact)) and match[2] == self._thing:
            self.held, self.place = True, self._actor_at
            line = f"{self._thing} taken: {self.place}"
        elif (match := DROP.match(fact)) and match[2] == self._thing:
            self.held = False
            line = f"{self._thing} left: {self.place}"
        if line:
            self.lines.append(line)
        return line
