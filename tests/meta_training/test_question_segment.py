"""Questions as the outer loss sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meta_training.document import Question
from meta_training.question_segment import question_segment
from perk.base_model import load_base_model
from perk.batches import make_micro_batches
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
