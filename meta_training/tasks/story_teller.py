"""Stories told anew by bAbI's rules: people walk, take what lies where they are, and drop what they carry."""

from __future__ import annotations

import random

from meta_training.tasks.babi_stories import Story
from meta_training.tasks.babi_words import ACTORS, PLACES, THINGS
from meta_training.tasks.whereabouts import derive_questions

__all__ = ["tell_story"]

_MOVES = ("went to", "went back to", "moved to", "travelled to", "journeyed to")
_TAKES = ("got", "took", "grabbed", "picked up")
_DROPS = ("dropped", "discarded", "left", "put down")
# As often as in bAbI.
_MOVE_SHARE = 0.65
_THERE_SHARE = 0.2
# A short story may answer nothing; every so many of them, the next is one fact longer.
_TRIES = 20


def tell_story(rng: random.Random, *, facts: int, supporting: int, in_order: bool) -> Story:
    """A story with one of the questions that it answers, at its end.

    Args:
        rng: source of all randomness.
        facts: how many there are, or a few more where so few answer nothing.
        supporting: facts that the question needs: 1, 2 or 3.
        in_order: as in `derive_questions`.
    """
    told = 0
    while True:
        story = _facts(rng, facts + told // _TRIES, things=THINGS if supporting > 1 else ())
        told += 1
        questions = derive_questions(story, supporting, in_order=in_order)
        if questions:
            return Story(story, (rng.choice(questions),))


def _facts(rng: random.Random, count: int, *, things: tuple[str, ...]) -> tuple[str, ...]:
    # Where all begin is not told.
    people = {actor: rng.choice(PLACES) for actor in ACTORS}
    lying = {thing: rng.choice(PLACES) for thing in things}
    holder: dict[str, str] = {}
    facts = []
    for _ in range(count):
        within_reach = [(who, thing) for thing, place in lying.items() for who in ACTORS if people[who] == place]
        within_reach += [(who, thing) for thing, who in holder.items()]
        if not within_reach or rng.random() < _MOVE_SHARE:
            actor = rng.choice(ACTORS)
            people[actor] = rng.choice([place for place in PLACES if place != people[actor]])
            facts.append(f"{actor} {rng.choice(_MOVES)} the {people[actor]}.")
            continue
        actor, thing = rng.choice(within_reach)
        if thing in lying:
            del lying[thing]
            holder[thing] = actor
            verb = rng.choice(_TAKES)
        else:
            del holder[thing]
            lying[thing] = people[actor]
            verb = rng.choice(_DROPS)
        facts.append(f"{actor} {verb} the {thing}{' there' if rng.random() < _THERE_SHARE else ''}.")
    return tuple(facts)
