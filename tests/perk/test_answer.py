"""Answers: each row under its own adapter, reproducible, ended where they should end, streamed to the same text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from perk import Answer, AnswerRequest, InvalidInput, PerkModel
from perk.answer_row import AnswerRow
from perk.settings import TemplateSettings

QUESTIONS = ("Where is Mary?", "What is the grade of the student with ID 3109998?", "Why?")

MakeAdapter = Callable[[PerkModel, int], Tensor]


@pytest.fixture
def model(make_model: Callable[..., PerkModel]) -> PerkModel:
    return make_model()


def answer_together(model: PerkModel, requests: Sequence[AnswerRequest]) -> list[Answer]:
    answering = model.start_answer(requests)
    texts, reasons = [""] * len(requests), [""] * len(requests)
    while not answering.done:
        for delta in answering.advance():
            assert not reasons[delta.row], "a row said something after its end"
            texts[delta.row] += delta.text
            reasons[delta.row] = delta.finish_reason or ""
    counts = zip(answering.prompt_tokens, answering.completion_tokens, strict=True)
    return [
        Answer(text, reason, prompt, completion)
        for text, reason, (prompt, completion) in zip(texts, reasons, counts, strict=True)
    ]


def test_rows_with_different_adapters_answer_as_each_does_alone(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter, family: Any
) -> None:
    model = make_model(family)
    adapters = [make_adapter(model, 1), make_adapter(model, 2), None]
    requests = [
        AnswerRequest(question, adapter=adapter, max_tokens=4 + 3 * index)
        for index, (question, adapter) in enumerate(product(QUESTIONS, adapters))
    ]
    together = answer_together(model, requests)
    alone = [answer_together(model, [request])[0] for request in requests]
    assert together == alone
    assert len({answer.text for answer in alone}) > 3, "the adapters make no difference"


def test_a_row_without_an_adapter_is_the_base_alone(model: PerkModel) -> None:
    text = answer_together(model, [AnswerRequest(QUESTIONS[0], max_tokens=12)])[0].text
    prompt = model.settings.templates.prompt.format(question=QUESTIONS[0])
    ids = torch.tensor([model.base.tokenizer.encode(prompt)])
    base: Any = model.base.model
    generated = base.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)
    assert text == str(model.base.tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_the_longest_answer_has_max_tokens(model: PerkModel) -> None:
    for count in (1, 5, 17):
        answer = model.answer(None, QUESTIONS[0], max_tokens=count)
        assert (answer.finish_reason, answer.completion_tokens) == ("length", count)
        assert answer.prompt_tokens == model.count_tokens(model.settings.templates.prompt.format(question=QUESTIONS[0]))


def test_the_end_token_ends_an_answer_and_does_not_count(model: PerkModel) -> None:
    whole = model.answer(None, QUESTIONS[0], max_tokens=10)
    ids = model.base.tokenizer.encode(whole.text, add_special_tokens=False)
    # The same model, but the token of the answer's middle is called the end.
    model.base.tokenizer.eos_token = str(model.base.tokenizer.convert_ids_to_tokens(ids[len(ids) // 2]))
    answer = model.answer(None, QUESTIONS[0], max_tokens=10)
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens < 10
    assert whole.text.startswith(answer.text)


@pytest.mark.parametrize("streamed_before", [0, 1, 5])
def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(
    streamed_before: int, model: PerkModel, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(model, 1)
    whole = model.answer(adapter, QUESTIONS[0], max_tokens=40).text
    stop = _ascii_part(whole, streamed_before)
    answer = model.answer(adapter, QUESTIONS[0], max_tokens=40, stop=("never said", stop))
    assert answer.text == whole[: whole.find(stop)].rstrip()
    assert answer.finish_reason == "stop"
    assert answer.completion_tokens < 40


def test_what_only_begins_like_a_stop_text_is_said(model: PerkModel, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(model, 1)
    whole = model.answer(adapter, QUESTIONS[0], max_tokens=40)
    stop = _ascii_part(whole.text, 5) + "\x01"
    assert model.answer(adapter, QUESTIONS[0], max_tokens=40, stop=(stop, whole.text + "\x01")) == whole


def _ascii_part(text: str, start: int) -> str:
    """Four characters of a text, whole characters of one byte each, at or after a place."""
    for index in range(start, len(text) - 4):
        part = text[index : index + 4]
        if part.isascii() and part.isprintable() and not part[0].isspace():
            return part
    raise AssertionError("the answer has no four plain characters in a row")


def test_space_before_a_stop_text_is_no_part_of_the_answer(model: PerkModel, make_adapter: MakeAdapter) -> None:
    found = 0
    for seed in range(20):
        adapter = make_adapter(model, seed)
        whole = model.answer(adapter, QUESTIONS[0], max_tokens=30).text
        match = re.search(r"\S\s+([!-~]{3,20})", whole)
        # Of several tokens, so that its beginning must wait for its end; and nowhere before.
        if match and model.count_tokens(match[1]) > 2 and whole.find(match[1]) == match.start(1):
            found += 1
            answer = model.answer(adapter, QUESTIONS[0], max_tokens=30, stop=(match[1],))
            assert answer.text == whole[: match.start() + 1]
        if found == 3:
            return
    raise AssertionError("too few answers have such a place")


@pytest.mark.parametrize("options", [{"temperature": 1.5}, {"temperature": 1.0, "top_p": 0.7}])
def test_the_same_seed_gives_the_same_answer(options: dict[str, float], model: PerkModel) -> None:
    def ask(seed: int) -> str:
        return model.answer(None, QUESTIONS[0], max_tokens=20, seed=seed, **options).text

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(5)}) == 5


def test_a_seeded_row_does_not_depend_on_its_batch(model: PerkModel, make_adapter: MakeAdapter) -> None:
    requests = [
        AnswerRequest(question, make_adapter(model, 1), max_tokens=10, temperature=0.8, seed=seed)
        for seed, question in enumerate(QUESTIONS)
    ]
    assert answer_together(model, requests) == [answer_together(model, [request])[0] for request in requests]


def test_without_a_seed_answers_differ(model: PerkModel) -> None:
    requests = [AnswerRequest(QUESTIONS[0], max_tokens=10, temperature=1.5)] * 4
    assert len({answer.text for answer in answer_together(model, requests)}) == 4


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"temperature": 1e-40}, {"top_p": 1e-9}])
def test_the_smallest_temperature_or_top_p_takes_the_likeliest_token(
    options: dict[str, float], model: PerkModel
) -> None:
    greedy = model.answer(None, QUESTIONS[0], max_tokens=10)
    assert model.answer(None, QUESTIONS[0], max_tokens=10, **{"temperature": 1.0, **options}) == greedy


def test_tokens_are_sampled_with_the_probabilities_of_the_temperature(model: PerkModel) -> None:
    temperature, rows = 0.2, 1500
    first = _first_token_probabilities(model, temperature)
    best = int(first.argmax())
    requests = [AnswerRequest("Why?", max_tokens=1, temperature=temperature, seed=seed) for seed in range(rows)]
    said = [answer.text for answer in answer_together(model, requests)]
    share = said.count(str(model.base.tokenizer.decode([best])).strip()) / rows
    expected = float(first[best])
    assert 0.05 < expected < 0.95
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / rows) ** 0.5)


def test_top_p_leaves_the_fewest_likeliest_tokens(model: PerkModel) -> None:
    top_p, temperature = 0.5, 0.5
    ordered, order = _first_token_probabilities(model, temperature).sort(descending=True)
    count = int((ordered.cumsum(-1) < top_p).sum()) + 1
    allowed = {str(model.base.tokenizer.decode([token])).strip() for token in order[:count].tolist()}
    requests = [
        AnswerRequest("Why?", max_tokens=1, temperature=temperature, top_p=top_p, seed=seed) for seed in range(300)
    ]
    said = {answer.text for answer in answer_together(model, requests)}
    assert said <= allowed
    assert len(said) > 0.5 * len(allowed)


def _first_token_probabilities(model: PerkModel, temperature: float) -> Tensor:
    ids = model.base.tokenizer.encode(model.settings.templates.prompt.format(question="Why?"))
    with torch.no_grad():
        logits: Tensor = model.base.model(torch.tensor([ids])).logits[0, -1]
    return (logits / temperature).softmax(-1)


def test_a_cancelled_row_says_nothing_more(model: PerkModel) -> None:
    answering = model.start_answer([AnswerRequest(question, max_tokens=10) for question in QUESTIONS[:2]])
    answering.advance()
    answering.cancel(0)
    rows = set()
    while not answering.done:
        rows |= {delta.row for delta in answering.advance()}
    assert rows == {1}
    assert answering.completion_tokens == [1, 10]


RECALLING = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", max_support_tokens=7)


def greedy_ids(model: PerkModel, adapter: Tensor, ids: Sequence[int], count: int) -> list[int]:
    """What plain decoding without a cache adds to `ids`."""
    grown = list(ids)
    for _ in range(count):
        with torch.no_grad(), model.adapted.bind(adapter[None]):
            last = model.base.backbone(torch.tensor([grown])).last_hidden_state[0, -1]
        grown.append(int((model.base.head @ last).argmax()))
    return grown[len(ids) :]


@pytest.mark.parametrize(("passage", "rounds"), [(tuple(range(20, 50)), 3), ((20, 21, 22, 23), 12), ((20,), 48)])
def test_recall_that_goes_round_ends(
    model: PerkModel, make_adapter: MakeAdapter, passage: tuple[int, ...], rounds: int
) -> None:
    templates = RECALLING.model_copy(update={"max_support_tokens": 400})
    row = AnswerRow(0, AnswerRequest(QUESTIONS[0], adapter=make_adapter(model, 1)), templates, model.base)
    # The beginning differs: only an end that repeats itself counts.
    said = [19, *(passage * (rounds + 3))]
    for token in said:
        row.take(torch.nn.functional.one_hot(torch.tensor(token), len(model.base.tokenizer)).float())
        if row.ids[-1] != token:
            break
    recalled = len(row.ids) - 1
    assert row.ids[:recalled] == said[:recalled]
    assert recalled == 1 + len(passage) * rounds
    assert model.base.tokenizer.decode(row.ids[recalled:]) in "\nAnswer:"


def test_lines_that_differ_in_a_word_do_not_go_round(model: PerkModel, make_adapter: MakeAdapter) -> None:
    templates = RECALLING.model_copy(update={"max_support_tokens": 400})
    row = AnswerRow(0, AnswerRequest(QUESTIONS[0], adapter=make_adapter(model, 1)), templates, model.base)
    said = [token for line in range(20) for token in (*range(20, 30), 100 + line)]
    for token in said:
        row.take(torch.nn.functional.one_hot(torch.tensor(token), len(model.base.tokenizer)).float())
    assert row.ids == said


def test_what_is_recalled_comes_before_the_answer_and_is_no_part_of_it(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter
) -> None:
    model = make_model(templates=RECALLING)
    adapter, tokenizer = make_adapter(model, 1), model.base.tokenizer
    answer = model.answer(adapter, QUESTIONS[0], max_tokens=5)
    prompt = tokenizer.encode(f"{QUESTIONS[0]}\nSupport:")
    mark = tokenizer.encode("\nAnswer:", add_special_tokens=False)
    support = greedy_ids(model, adapter, prompt, 7)
    said = greedy_ids(model, adapter, [*prompt, *support, *mark], 5)
    assert answer.support == tokenizer.decode(support).strip()
    assert answer.text == tokenizer.decode(said).strip()
    assert answer.completion_tokens == 7 + len(mark) + 5
    assert answer.finish_reason == "length"


def test_only_the_answer_is_sampled_and_stopped(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter
) -> None:
    model = make_model(templates=RECALLING)
    adapter = make_adapter(model, 1)
    plain = model.answer(adapter, QUESTIONS[0], max_tokens=5)
    stopped = model.answer(adapter, QUESTIONS[0], max_tokens=5, stop=(plain.support[2:4], plain.text[3:5]))
    assert (stopped.support, stopped.text) == (plain.support, plain.text[:3].rstrip())
    hot = {model.answer(adapter, QUESTIONS[0], max_tokens=5, temperature=2.0, seed=seed).text for seed in range(5)}
    assert len(hot) > 1
    assert {model.answer(adapter, QUESTIONS[0], temperature=2.0, seed=s).support for s in range(5)} == {plain.support}


def test_a_model_that_ends_without_an_answer_is_made_to_give_one(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(templates=RECALLING)
    adapter = make_adapter(model, 1)
    prompt = model.base.tokenizer.encode(f"{QUESTIONS[0]}\nSupport:")
    # Whatever it says third now means the end.
    monkeypatch.setattr(type(model.base), "eos_id", greedy_ids(model, adapter, prompt, 3)[-1])
    answer = model.answer(adapter, QUESTIONS[0], max_tokens=3)
    assert model.count_tokens(answer.support) <= 2
    assert answer.completion_tokens > 2


def test_a_row_without_an_adapter_is_asked_to_answer_at_once(make_model: Callable[..., PerkModel]) -> None:
    plain, recalling = make_model(), make_model(templates=RECALLING)
    assert recalling.answer(None, QUESTIONS[0]) == plain.answer(None, QUESTIONS[0])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"question": ""}, "question"),
        ({"question": " \n"}, "question"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ("end", "")}, "stop"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        AnswerRequest(**{"question": "Why?", **options})
    assert caught.value.field == field


def test_a_question_longer_than_the_model_is_refused_with_the_limit(model: PerkModel) -> None:
    with pytest.raises(
        InvalidInput, match=r"question: got \d+ tokens with max_tokens 64, expected together at most 1024"
    ):
        model.answer(None, "why " * 1000)
    assert model.answer(None, "Why?", max_tokens=1).completion_tokens == 1
    with pytest.raises(InvalidInput, match="max_tokens 1024"):
        model.answer(None, "Why?", max_tokens=1024)


def test_an_adapter_of_another_size_is_refused(model: PerkModel) -> None:
    with pytest.raises(InvalidInput, match=rf"adapter: got shape \(3,\), expected shape \({model.adapter_size},\)"):
        model.answer(torch.zeros(3), "Why?")


def test_there_must_be_a_question(model: PerkModel) -> None:
    with pytest.raises(InvalidInput, match="requests: got none"):
        model.start_answer([])
