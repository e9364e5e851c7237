"""Of a question that the reader answers, only what it writes itself carries loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from meta_training.document import Question
from meta_training.reading_segment import reading_segment
from perk.base_model import BaseModel, load_base_model
from perk.settings import TemplateSettings

_TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")


@pytest.fixture
def base(tiny_llama: Path) -> BaseModel:
    return load_base_model(str(tiny_llama), device="cpu")


def test_names_of_entries_and_what_follows_from_them_carry_loss(base: BaseModel) -> None:
    lines = ("Series 1: Ann.", "Ann 1: Ann took the milk.", "milk taken: hall", "Ann 2: none.", "Series 2: none.")
    question = Question("Where is the milk?", "hall", support=lines, derivation="Ann has the milk: hall")
    segment = reading_segment(question, base, _TEMPLATES)
    whole = base.tokenizer.decode(segment.ids[segment.prefix_tokens : -1])
    assert whole == " " + "\n".join(lines) + "\nAnn has the milk: hall\nAnswer: hall"
    written = [segment.ids[index] for index in segment.carrying]
    assert written[-1] == base.eos_id
    assert base.tokenizer.decode(written[:-1]) == (
        " Series 1:Ann 1:milk taken: hall\nAnn 2:Series 2:Ann has the milk: hall\nAnswer: hall"
    )
    assert {segment.weights[index - segment.prefix_tokens] for index in segment.carrying} == {1.0}


def test_the_mark_follows_a_line_that_is_recalled_with_its_break(base: BaseModel) -> None:
    question = Question("Where is Ann?", "hall", support=("Series 1: Ann.", "Ann 1: Ann went to the hall."))
    segment = reading_segment(question, base, _TEMPLATES)
    written = [segment.ids[index] for index in segment.carrying]
    assert base.tokenizer.decode(written[:-1]) == " Series 1:Ann 1:Answer: hall"


@pytest.mark.parametrize("support", [(), ("Ann 1: Ann went to the hall.",), ("A record, 7: no series.",)])
def test_any_other_question_is_left_to_the_document(base: BaseModel, support: tuple[str, ...]) -> None:
    segment = reading_segment(Question("Where is Ann?", "hall", support=support), base, _TEMPLATES)
    assert base.tokenizer.decode(segment.ids[: segment.prefix_tokens]) == "Where is Ann?\nSupport:"
    assert segment.ids[segment.prefix_tokens :] == (base.eos_id,)
    assert segment.loss_tokens == 1


def test_templates_without_a_support_leave_nothing_to_read(base: BaseModel) -> None:
    with pytest.raises(ValueError, match="no support"):
        reading_segment(Question("Where is Ann?", "hall"), base, TemplateSettings())
