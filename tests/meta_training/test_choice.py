"""A reader of parts learns to choose: a question becomes likelier behind the part that answers it than elsewhere."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from meta_training.choice_example import ChoiceExample, choice_example
from meta_training.choice_loss import ChoiceLoss
from meta_training.document import Question
from perk.base_model import BaseModel, load_base_model
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import LoraSettings

_PARAGRAPH = "The Mill. It stands by the river Lisk. Ann Crowe built it. She was a mason."


@pytest.fixture
def base(tiny_llama: Path) -> BaseModel:
    return load_base_model(str(tiny_llama), device="cpu")


def _example(question: Question, base: BaseModel, seed: int = 0) -> ChoiceExample:
    made = choice_example(question, base, random.Random(seed))
    assert made is not None
    return made


def test_the_question_stands_behind_each_part_of_its_paragraph(base: BaseModel) -> None:
    question = Question("Who built it?", "the mason", answers=("ann crowe",), support=(_PARAGRAPH,))
    seen: dict[str, bool] = {}
    for seed in range(40):
        example = _example(question, base, seed)
        assert set(example.right) == {True, False}
        for segment, right in zip(example.segments, example.right, strict=True):
            assert base.tokenizer.decode(segment.ids[segment.first_loss :]) == " Who built it?"
            seen[str(base.tokenizer.decode(segment.ids[: segment.prefix_tokens]))] = right
    assert seen == {
        f"The Mill. {part}\nQuestion:": "Ann" in part
        for part in (
            "It stands by the river Lisk.",
            "It stands by the river Lisk. Ann Crowe built it.",
            "Ann Crowe built it.",
            "Ann Crowe built it. She was a mason.",
            "She was a mason.",
        )
    }


@pytest.mark.parametrize(
    ("answer", "paragraph"),
    [("Bob", _PARAGRAPH), ("Ann", "Ann built it."), ("Ann", "The Mill. Ann built it. Ann was old. Ann slept.")],
    ids=["nowhere", "one sentence", "everywhere"],
)
def test_what_no_cut_tells_apart_is_no_example(base: BaseModel, answer: str, paragraph: str) -> None:
    question = Question("Who built it?", answer, support=(paragraph,))
    assert choice_example(question, base, random.Random(0)) is None


def test_of_a_long_question_the_end_is_read(base: BaseModel) -> None:
    question = Question("and then " * 100 + "who built it?", "Ann", support=(_PARAGRAPH,))
    for segment in _example(question, base).segments:
        assert segment.loss_tokens == 48
        assert str(base.tokenizer.decode(segment.ids)).endswith("who built it?")


def _surprise(adapted: AdaptedModel, theta: Tensor, segment: Segment) -> Tensor:
    """NLL of a segment's text, by the model's own modules."""
    ids = torch.tensor([segment.ids])
    with adapted.bind(theta):
        states = adapted.upper_states(adapted.lower_states(ids))
    likelihood = (states[0, :-1] @ adapted.base.head.T).log_softmax(-1).gather(1, ids[0, 1:, None])
    return -likelihood[segment.first_loss - 1 :].sum()


@pytest.mark.parametrize(("family", "merges"), [("tiny_llama", True), ("tiny_llama", False), ("tiny_gpt2", False)])
def test_loss_and_gradient_are_those_of_the_formula(family: str, merges: bool, request: pytest.FixtureRequest) -> None:
    base = load_base_model(str(request.getfixturevalue(family)), device="cpu")
    adapted = AdaptedModel(base, LoraSettings(rank=4, first_layer=1))
    theta = 0.05 * torch.randn(1, adapted.layout.size, generator=torch.Generator().manual_seed(1))
    merged = adapted.start_merging(torch.float32) if merges else None
    if merged is not None:
        merged.merge(theta)
    questions = [Question(text, "Ann Crowe", support=(_PARAGRAPH,)) for text in ("Who built it?", "What is her name?")]
    examples = [_example(question, base, seed) for seed, question in enumerate(questions, start=3)]
    loss, chosen, gradient = ChoiceLoss(adapted)(theta, examples, merged)

    own = theta.clone().requires_grad_()
    expected, right = torch.zeros(()), 0
    for example in examples:
        surprise = torch.stack([_surprise(adapted, own, segment) for segment in example.segments])
        answers = torch.tensor(example.right)
        likely = (-surprise / 4).softmax(0)
        likelihoods = surprise[answers] / example.segments[0].loss_tokens
        expected = expected - likely[answers].sum().log() + 0.3 * likelihoods.mean()
        right += int(answers[likely.argmax()])
    (slope,) = torch.autograd.grad(expected, own)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert chosen == right
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-5)
