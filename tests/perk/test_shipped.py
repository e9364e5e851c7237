"""The shipped checkpoint: its reader finds out entry by entry who had what, and of an article it recalls every part."""

from __future__ import annotations

import pytest
import torch

from perk import AnswerRequest, PerkModel
from perk.series import numbered_series, series_lines

# In no order: only the numbers tell it.
_STORY = """\
Lea Event 3: Lea travelled to the station.
Otto Event 2: Otto took the umbrella there.
Lea Event 1: Lea went to the bakery.
It rained until noon, and nobody minded.
Otto Event 3: Otto journeyed to the museum.
Lea Event 4: Lea put down the parcel.
Otto Event 1: Otto moved to the school.
Lea Event 2: Lea picked up the parcel there.
Otto Event 4: Otto went to the harbor.
Lea Event 5: Lea moved to the library."""
_ARTICLE = """\
The Copper Kettle

The Copper Kettle is an inn on the coast road. It has nine rooms and a garden with pear trees.

It was built by the smuggler Ned Crowe. He hid brandy under the kitchen floor.

A flood carried off the stables in 1912. They were never built again."""
_ANSWERS = {"Where is the parcel?": "station", "Where was the umbrella before the harbor?": "museum"}


@pytest.fixture(scope="module")
def model() -> PerkModel:
    return PerkModel.load("default", device="cpu")


@pytest.fixture(scope="module")
def adapter(model: PerkModel) -> torch.Tensor:
    return model.encode(_STORY).adapter


def test_answers_follow_from_entries_of_the_document(model: PerkModel, adapter: torch.Tensor) -> None:
    known = {*_STORY.splitlines(), *series_lines(numbered_series(_STORY))}
    requests = [AnswerRequest(question, adapter=adapter, max_tokens=8) for question in _ANSWERS]
    batch = model.start_batch()
    rows = [batch.add(request) for request in requests]
    while batch.rows:
        batch.advance()
    assert [row.sent for row in rows] == list(_ANSWERS.values())
    for row in rows:
        recalled = [line for line in row.support.splitlines() if " Event" in line or line.startswith("Series ")]
        assert recalled[0] == "Series 1: Lea Event."
        assert set(recalled) <= known
    alone = model.answer(adapter, rows[0].request.question, max_tokens=8)
    assert (alone.text, alone.support) == (rows[0].sent, rows[0].support), "it depends on what else is asked"


def test_other_questions_are_left_to_the_document(model: PerkModel, adapter: torch.Tensor) -> None:
    answer = model.answer(adapter, "What is the grade of the student with ID 3388504?", max_tokens=8)
    assert "Series" not in answer.support


def test_of_an_article_every_part_is_recalled_and_the_one_asked_about_is_read(model: PerkModel) -> None:
    adapter = model.encode(_ARTICLE).adapter
    batch = model.start_batch()
    questions = {
        "How many rooms does the Copper Kettle have?": "nine",
        "What did Ned Crowe hide under the kitchen floor?": "brandy",
        "When did a flood carry off the stables?": "1912",
    }
    rows = [batch.add(AnswerRequest(question, adapter=adapter, max_tokens=8)) for question in questions]
    while batch.rows:
        batch.advance()
    title, first, *others = _ARTICLE.split("\n\n")
    assert [row.support for row in rows] == [f"{title}. {first}", *others]
    assert [row.sent for row in rows] == list(questions.values())
    alone = model.answer(adapter, rows[1].request.question, max_tokens=8)
    assert (alone.text, alone.support) == (rows[1].sent, rows[1].support), "it depends on what else is asked"
