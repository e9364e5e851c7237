"""Stories told anew: nothing happens in them that bAbI's rules forbid, and each ends with a question it answers."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from meta_training.tasks.babi_words import ACTORS, PLACES, THINGS
from meta_training.tasks.story_teller import tell_story
from meta_training.tasks.whereabouts import derive_questions

SEEDS = range(40)
_FACT = re.compile(r"(\w+) (went to|went back to|moved to|travelled to|journeyed to|got|took|grabbed|picked up|dropped|"
                   r"discarded|left|put down) the (\w+)( there)?\.")  # fmt: skip


@pytest.mark.parametrize(("supporting", "facts"), [(1, 2), (1, 10), (2, 4), (2, 20), (3, 5), (3, 40)])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_story_ends_with_one_of_the_questions_that_it_answers(supporting: int, facts: int, in_order: bool) -> None:
    for seed in SEEDS:
        story = tell_story(random.Random(seed), facts=facts, supporting=supporting, in_order=in_order)
        (asked,) = story.questions
        assert asked in derive_questions(story.facts, supporting, in_order=in_order)
        assert len(asked.support) == supporting
        # A short story may have to be longer to answer anything.
        assert facts <= len(story.facts) <= facts + 12


def test_things_are_taken_where_they_lie_and_dropped_by_their_holders() -> None:
    kinds: Counter[str] = Counter()
    for seed in SEEDS:
        story = tell_story(random.Random(seed), facts=40, supporting=2, in_order=True)
        people: dict[str, str] = {}
        holder: dict[str, str] = {}
        lying: dict[str, str | None] = {}
        for fact in story.facts:
            match = _FACT.fullmatch(fact)
            assert match, fact
            actor, verb, what = match[1], match[2], match[3]
            assert actor in ACTORS
            if verb.endswith(" to"):
                assert what in PLACES
                assert people.get(actor) != what, "nobody goes where they are"
                people[actor] = what
                kinds["move"] += 1
            elif verb in ("dropped", "discarded", "left", "put down"):
                assert holder.pop(what) == actor
                lying[what] = people.get(actor)
                kinds["drop"] += 1
            else:
                assert what in THINGS
                assert what not in holder
                place = lying.pop(what, None)
                assert place is None or people.get(actor) in (None, place)
                holder[what] = actor
                kinds["take"] += 1
    shares = {kind: count / kinds.total() for kind, count in kinds.items()}
    assert shares == pytest.approx({"move": 0.65, "take": 0.2, "drop": 0.15}, abs=0.05)


def test_the_same_draws_tell_the_same_story() -> None:
    told = [tell_story(random.Random(seed), facts=9, supporting=3, in_order=False) for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]
