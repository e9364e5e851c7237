"""Derived questions: what follows from a bAbI story, by the rules that its own questions follow."""

from __future__ import annotations

import pytest

from meta_training.tasks.babi_stories import read_stories
from meta_training.tasks.shared_data import data_file
from meta_training.tasks.whereabouts import derive_questions
from perk.errors import InvalidInput

_CARRIED = (
    "Ann went to the cellar.",
    "Ann picked up the lamp there.",
    "Ben travelled to the attic.",
    "Ann moved to the shed.",
    "Ann journeyed to the barn.",
    "Ann went back to the shed.",
    "Ann discarded the lamp.",
    "Ann went to the attic.",
)


def _derived(facts: tuple[str, ...], supporting: int, *, in_order: bool = True) -> dict[str, tuple[str, list[int]]]:
    questions = derive_questions(facts, supporting, in_order=in_order)
    assert all(question.facts == len(facts) for question in questions)
    return {question.question: (question.answer, list(question.support)) for question in questions}


@pytest.mark.parametrize(("supporting", "questions"), [(1, 10_000), (2, 10_000), (3, 1_000)])
def test_every_question_of_the_data_set_follows_with_its_answer_and_its_support(
    supporting: int, questions: int
) -> None:
    try:
        path = data_file(f"babi/qa{supporting}_train.txt")
    except InvalidInput as error:
        pytest.skip(f"needs the data set itself: {error}")
    agreed = 0
    for story in read_stories(path):
        for asked in story.questions:
            assert asked in derive_questions(story.facts[: asked.facts], supporting, in_order=True)
            agreed += 1
    assert agreed == questions


def test_a_person_is_where_the_last_move_led() -> None:
    assert _derived(_CARRIED, 1) == {"Where is Ann?": ("attic", [7]), "Where is Ben?": ("attic", [2])}


def test_a_thing_is_with_its_holder_or_where_it_was_dropped() -> None:
    assert _derived(_CARRIED[:6], 2) == {"Where is the lamp?": ("shed", [1, 5])}
    assert _derived(_CARRIED, 2) == {"Where is the lamp?": ("shed", [6, 5])}


def test_where_a_thing_was_before_counts_from_the_last_visit_with_it_in_hand() -> None:
    assert _derived(_CARRIED, 3) == {
        "Where was the lamp before the shed?": ("barn", [6, 5, 4]),
        "Where was the lamp before the barn?": ("shed", [6, 4, 3]),
    }


def test_a_thing_of_two_holders_is_asked_about_only_where_their_own_facts_tell() -> None:
    handed_on = (*_CARRIED, "Ben went to the shed.", "Ben took the lamp.", "Ben went to the barn.")
    also_dropped = (*handed_on, "Ben moved to the shed.", "Ben left the lamp.")
    held = {"Where is the lamp?": ("barn", [9, 10])}
    assert _derived(handed_on, 2) == _derived(handed_on, 2, in_order=False) == held
    assert _derived(also_dropped, 2) == {"Where is the lamp?": ("shed", [12, 11])}
    assert _derived(also_dropped, 3) == {"Where was the lamp before the shed?": ("barn", [12, 11, 10])}
    # Without the order of all facts, Ann may have been the last.
    assert _derived(also_dropped, 2, in_order=False) == _derived(also_dropped, 3, in_order=False) == {}


def test_nothing_is_asked_about_a_thing_whose_place_was_never_said() -> None:
    assert _derived(("Ann took the lamp.",), 2) == {}
    assert _derived(("Ann took the lamp.", "Ann went to the barn.", "Ann dropped the lamp."), 3) == {}
