"""Questions made of a passage's own sentences."""

from __future__ import annotations

import random

import pytest

from meta_training.tasks.cloze import cloze_questions

PASSAGE = (
    "Corrin Lighthouse. The lighthouse was designed by Agnes Tolliver and lit on 3 October 1871. "
    "Its granite tower has 142 steps and stands above Port Elwin. They sell soap there every summer."
)
SEEDS = range(50)


def test_each_answer_stands_in_the_sentence_that_supports_it() -> None:
    seen = set()
    for seed in SEEDS:
        for question in cloze_questions(PASSAGE, random.Random(seed), count=9):
            (support,) = question.support
            assert support in PASSAGE
            assert question.answer in support
            assert question.question.endswith("?")
            seen.add(question.answer)
    assert seen == {"Agnes Tolliver", "3 October 1871", "142", "Port Elwin"}, "no title, no first word of a sentence"


def test_what_is_asked_for_is_taken_out_of_its_question() -> None:
    for seed in SEEDS:
        for question in cloze_questions(PASSAGE, random.Random(seed), count=9):
            assert question.answer not in question.question
            words = question.question.removeprefix("Corrin Lighthouse: ").split()
            opening = {
                "Agnes Tolliver": ("who", "what", "which", "where"),
                "Port Elwin": ("who", "what", "which", "where"),
                "3 October 1871": ("when", "in", "on"),
                "142": ("how", "what"),
            }
            assert words[0].lower() in opening[question.answer]


def test_questions_differ_in_words_from_draw_to_draw() -> None:
    drawn = {q.question for seed in SEEDS for q in cloze_questions(PASSAGE, random.Random(seed), count=9)}
    assert len(drawn) > 50
    assert any(question.startswith("Corrin Lighthouse: ") for question in drawn)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_more_questions_than_asked_for(count: int) -> None:
    assert len(cloze_questions(PASSAGE, random.Random(1), count=count)) == count


def test_the_same_seed_makes_the_same_questions() -> None:
    assert cloze_questions(PASSAGE, random.Random(7), count=4) == cloze_questions(PASSAGE, random.Random(7), count=4)


@pytest.mark.parametrize("passage", ["", "they sell soap.", "Nobody came.", "In 1871."])
def test_a_passage_with_nothing_to_take_out_has_no_questions(passage: str) -> None:
    assert cloze_questions(passage, random.Random(0), count=5) == []
