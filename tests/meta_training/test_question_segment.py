"""Questions as the outer loss sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meta_training.document import Question
from meta_training.question_segment import question_segment
from perk.base_model import BaseModel, load_base_model
from perk.batches import make_micro_batches
from perk.segment import Segment
from perk.settings import TemplateSettings


def test_a_question_is_a_prompt_without_loss_then_its_answer_and_the_end(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    segment = question_segment(Question("Where is Mary?", "kitchen"), base, TemplateSettings())
    prompt, answer = list(segment.ids[: segment.prefix_tokens]), list(segment.ids[segment.prefix_tokens :])
    assert base.tokenizer.decode(prompt) == "Where is Mary?\nAnswer:"
    assert base.tokenizer.decode(answer[:-1]) == " kitchen"
    assert answer[-1] == base.eos_id


def test_a_target_recalls_what_supports_the_answer_first(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    question = Question("Where is Mary?", "kitchen", support=("Mary went to the kitchen.",))
    segment = question_segment(question, base, TemplateSettings(support=" {support}\nAnswer:"))
    target = base.tokenizer.decode(segment.ids[segment.prefix_tokens : -1])
    assert target == " Mary went to the kitchen.\nAnswer: kitchen"


def test_answers_and_the_mark_before_them_weigh_what_they_are_said_to_and_supports_one(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    question = Question("Where is Mary?", "kitchen", support=("Mary went to the kitchen.",))
    templates = TemplateSettings(support=" {support}\nAnswer:")
    segment = question_segment(question, base, templates, answer_weight=4)
    stressed = segment.weights.count(4)
    assert base.tokenizer.decode(segment.ids[-stressed:-1]) == "\nAnswer: kitchen"
    (batch,) = make_micro_batches([[segment]], token_limit=1024, pad_id=base.eos_id)
    shares = batch.shares[0]
    assert float(shares.sum()) == pytest.approx(1)
    support, answer = shares[:-stressed], shares[-stressed:]
    assert torch.equal(answer, answer[:1].expand_as(answer))
    assert torch.equal(support, support[:1].expand_as(support))
    assert float(answer[0] / support[0]) == pytest.approx(4)


def test_a_derivation_follows_the_support_and_weighs_as_much_as_the_answer(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    question = Question("Who?", "Yes", support=("Mary has 7.", "John has 9."), derivation="Grade: 7 and 9: lower")
    templates = TemplateSettings(support=" {support}\nAnswer:")
    segment = question_segment(question, base, templates, answer_weight=4)
    target = base.tokenizer.decode(segment.ids[segment.prefix_tokens : -1])
    assert target == " Mary has 7.\nJohn has 9.\nGrade: 7 and 9: lower\nAnswer: Yes"
    stressed = base.tokenizer.decode(segment.ids[-segment.weights.count(4) : -1])
    assert stressed == "Grade: 7 and 9: lower\nAnswer: Yes"


def test_without_a_place_for_the_support_there_is_none_for_the_derivation(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    question = Question("Who?", "Yes", support=("Mary has 7.",), derivation="Grade: 7 and 9: lower")
    segment = question_segment(question, base, TemplateSettings(), answer_weight=4)
    assert base.tokenizer.decode(segment.ids[segment.prefix_tokens : -1]) == " Yes"


def test_what_follows_from_lines_of_the_document_weighs_as_the_answer_does_and_alone_where_those_are_given(
    tiny_llama: Path,
) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    lines = ("Mary took the milk.", "milk taken: hall", "Mary went home.", "Mary slept.", "milk: home")
    question = Question("Where is the milk?", "home", support=lines, derivation="milk: home")
    templates = TemplateSettings(support=" {support}\nAnswer:")

    def weighing(recall_weight: float) -> Segment:
        return question_segment(
            question,
            base,
            templates,
            answer_weight=3,
            stands=lambda line: line.startswith("Mary"),
            recall_weight=recall_weight,
        )

    segment = weighing(0)
    assert segment.loss_tokens < len(segment.weights) == len(segment.ids) - segment.prefix_tokens
    # The first tokens of the second and the third of Mary's lines.
    first, second = (base.tokenizer.decode([base.tokenizer.encode(line)[0]]) for line in lines[2:4])
    follows = f"milk taken: hall\n{first}{second}milk: home\nmilk: home\nAnswer: home"
    assert _of_weight(segment, base, 3).startswith(follows)
    assert segment.loss_weight == 3 * segment.weights.count(3)
    recalled = weighing(1)
    assert _of_weight(recalled, base, 3) == _of_weight(segment, base, 3)
    assert recalled.loss_weight == segment.loss_weight + len(segment.weights) - segment.weights.count(3)


def test_of_a_support_that_is_given_whole_nothing_carries_loss(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    question = Question("Where is Mary?", "home", support=("Mary went home.", "Mary slept."))
    segment = question_segment(
        question,
        base,
        TemplateSettings(support=" {support}\nAnswer:"),
        stands=lambda line: line in question.support,
        recall_weight=0,
    )
    assert _of_weight(segment, base, 1).startswith("\nAnswer: home")


def _of_weight(segment: Segment, base: BaseModel, weight: float) -> str:
    """The text of the tokens that weigh so much."""
    target = zip(segment.ids[segment.prefix_tokens :], segment.weights, strict=True)
    return str(base.tokenizer.decode([token for token, own in target if own == weight]))
