"""Where the people and things of a bAbI story are, and the questions that this answers, with bAbI's own support.

bAbI asks a few of the questions that its stories answer. The others follow by the same rules, which give every question
of its three files its own answer and its own support, in its order: the last move (QA1); the last taking or dropping,
then the last move of who did it (QA2); the last taking or dropping, then the move to the place asked about, then the
move before it, both made with the thing in hand (QA3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from meta_training.tasks.babi_stories import Asked

__all__ = ["DROP", "MOVE", "TAKE", "derive_questions"]

MOVE = re.compile(r"^(\w+) (?:went back|went|moved|travelled|journeyed) to the (\w+)\.$")
TAKE = re.compile(r"^(\w+) (?:got|took|grabbed|picked up) the (\w+)")
DROP = re.compile(r"^(\w+) (?:dropped|discarded|left|put down) the (\w+)")


@dataclass(frozen=True)
class _Stay:
    """A place, and the index of the move that led there."""

    place: str
    since: int


@dataclass
class _Thing:
    """What became of a thing so far.

    Attributes:
        handled: index of its last taking or dropping.
        actor: who did it.
        held: whether that was a taking.
        at: where it is, if that was said.
        carried: where it was carried since it was last taken, in order.
        actors: all who ever took it.
    """

    handled: int
    actor: str
    held: bool
    at: _Stay | None
    carried: list[_Stay] = field(default_factory=list)
    actors: set[str] = field(default_factory=set)

    @property
    def told_by_its_actors(self) -> bool:
        """Whether the order of each actor's own facts tells where it is, without that of all facts.

        Who took it last and dropped it nowhere has it. Of several who all dropped it, only the story knows the last.
        """
        return self.held or len(self.actors) == 1


def derive_questions(facts: Sequence[str], supporting: int, *, in_order: bool) -> list[Asked]:
    """Questions that facts answer.

    Args:
        facts: of a story, in its order.
        supporting: facts that a question needs: 1, 2 or 3 (bAbI's QA1, QA2, QA3).
        in_order: whether a reader sees the order of all facts. Otherwise, as with event numbers by actor, only the
            questions are derived that this decides.
    """
    people, things = _follow(facts)
    if supporting == 1:
        return [_asked(facts, f"Where is {actor}?", stay.place, stay.since) for actor, stay in people.items()]
    told = {name: thing for name, thing in things.items() if in_order or thing.told_by_its_actors}
    if supporting == 2:
        return [
            _asked(facts, f"Where is the {name}?", thing.at.place, thing.handled, thing.at.since)
            for name, thing in told.items()
            if thing.at is not None
        ]
    return [question for name, thing in told.items() for question in _places_before(facts, name, thing)]


def _places_before(facts: Sequence[str], name: str, thing: _Thing) -> list[Asked]:
    # Of several visits to a place, bAbI means the last.
    last = {stay.place: index for index, stay in enumerate(thing.carried)}
    return [
        _asked(
            facts,
            f"Where was the {name} before the {place}?",
            thing.carried[index - 1].place,
            thing.handled,
            thing.carried[index].since,
            thing.carried[index - 1].since,
        )
        for place, index in last.items()
        if index > 0
    ]


def _asked(facts: Sequence[str], question: str, answer: str, *support: int) -> Asked:
    return Asked(len(facts), question, answer, support)


def _follow(facts: Sequence[str]) -> tuple[dict[str, _Stay], dict[str, _Thing]]:
    """Where people are, and what became of the things, at the end of the facts."""
    people: dict[str, _Stay] = {}
    things: dict[str, _Thing] = {}
    for index, fact in enumerate(facts):
        if match := MOVE.match(fact):
            stay = people[match[1]] = _Stay(match[2], index)
            for thing in things.values():
                if thing.held and thing.actor == match[1]:
                    thing.at = stay
                    thing.carried.append(stay)
        elif match := TAKE.match(fact):
            before = things[match[2]].actors if match[2] in things else set()
            things[match[2]] = _Thing(index, match[1], True, people.get(match[1]), actors={*before, match[1]})
        elif (match := DROP.match(fact)) and match[2] in things:
            thing = things[match[2]]
            thing.handled, thing.held = index, False
    return people, things
