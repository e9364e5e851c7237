"""Of a question about a part, the answer alone carries loss."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from meta_training.document import Question
from meta_training.part_segment import part_segment
from perk.base_model import BaseModel, load_base_model
from perk.errors import InvalidInput
from perk.segment import Segment
from perk.settings import TemplateSettings

_TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")
_PARAGRAPH = "The Mill. It stands by the river Lisk. Ann Crowe built it. She was a mason."


@pytest.fixture
def base(tiny_llama: Path) -> BaseModel:
    return load_base_model(str(tiny_llama), device="cpu")


def _told(segment: Segment, base: BaseModel) -> str:
    return str(base.tokenizer.decode(segment.ids[segment.prefix_tokens : -1]))


def _learned(segment: Segment, base: BaseModel) -> str:
    written = [segment.ids[index] for index in segment.carrying]
    assert written[-1] == base.eos_id
    return str(base.tokenizer.decode(written[:-1]))


def test_the_answer_behind_the_paragraph_or_a_half_of_it_carries_loss(base: BaseModel) -> None:
    question = Question("Who built it?", "Ann Crowe", support=(_PARAGRAPH,), derivation="not told")
    rng = random.Random(1)
    told = set()
    for _ in range(60):
        segment = part_segment(question, base, _TEMPLATES, rng)
        assert base.tokenizer.decode(segment.ids[: segment.prefix_tokens]) == "Who built it?\nSupport:"
        assert _learned(segment, base) == " Ann Crowe"
        told.add(_told(segment, base))
    every = {
        _PARAGRAPH,
        "It stands by the river Lisk. Ann Crowe built it.",
        "Ann Crowe built it. She was a mason.",
        "The Mill. It stands by the river Lisk. Ann Crowe built it.",
        "The Mill. Ann Crowe built it. She was a mason.",
    }
    assert told == {f" {part}\nAnswer: Ann Crowe" for part in every}


def test_what_stands_in_the_paragraph_is_the_answer_of_several(base: BaseModel) -> None:
    question = Question("Who built it?", "A. Crowe", answers=("Mrs Crowe", "Ann Crowe"), support=(_PARAGRAPH,))
    assert _learned(part_segment(question, base, _TEMPLATES, random.Random(0)), base) == " Ann Crowe"


def test_a_paragraph_without_the_words_of_the_answer_stays_whole(base: BaseModel) -> None:
    question = Question("Is it old?", "yes", support=("The Mill.\nIt is old.", "Ann built it."))
    for seed in range(9):
        segment = part_segment(question, base, _TEMPLATES, random.Random(seed))
        assert _told(segment, base) == " The Mill. It is old. Ann built it.\nAnswer: yes"
        assert _learned(segment, base) == " yes"


def test_a_question_without_support_is_refused(base: BaseModel) -> None:
    with pytest.raises(InvalidInput, match="tasks: got 'nq', expected tasks whose questions come with their support"):
        part_segment(Question("Who?", "Ann", task="nq"), base, _TEMPLATES, random.Random(0))
    with pytest.raises(ValueError, match="no support to read"):
        part_segment(Question("Who?", "Ann", support=("Ann.",)), base, TemplateSettings(), random.Random(0))
