"""Key-value lists: each line gives a key a code, and questions ask for codes."""

from __future__ import annotations

import random
import re

import pytest

from meta_training.tasks import CountTokens, Document
from meta_training.tasks.key_value import KeyValue
from perk.errors import InvalidInput

SEEDS = range(20)


def _codes(document: Document) -> dict[str, str]:
    assert isinstance(document.context, str)
    matches = [re.fullmatch(r"The code of (\w+ \w+) is (\d{5})\.", line) for line in document.context.splitlines()]
    codes = {match[1]: match[2] for match in matches if match}
    assert len(codes) == len(matches), "a line is malformed, or a key is there twice"
    return codes


def test_each_answer_is_the_code_of_its_key(count_words: CountTokens) -> None:
    task = KeyValue(split="train", count_tokens=count_words, questions=8)
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=160)
        codes = _codes(document)
        assert len({question.question for question in document.questions}) == 8
        for question in document.questions:
            match = re.fullmatch(r"What is the code of (\w+ \w+)\?", question.question)
            assert match
            assert question.answer == codes[match[1]]
            assert question.support[0] in document.context


def test_the_length_is_as_asked(count_words: CountTokens) -> None:
    task = KeyValue(split="train", count_tokens=count_words)
    for tokens in (20, 200, 2000):
        context = str(task.draw(random.Random(0), tokens=tokens).context)
        length = count_words(context) + len(context.splitlines())  # a line end is a token
        assert tokens - 8 < length <= tokens
    assert len(_codes(task.draw(random.Random(0), tokens=1))) == 1


def test_the_splits_share_no_key(count_words: CountTokens) -> None:
    train, dev = (
        {
            key
            for seed in SEEDS
            for key in _codes(KeyValue(split=split, count_tokens=count_words).draw(random.Random(seed), tokens=2000))
        }
        for split in ("train", "dev")
    )
    assert train
    assert dev
    assert not train & dev


@pytest.mark.parametrize(("position", "line"), [(0.0, 0), (0.5, 10), (1.0, -1)])
def test_a_position_asks_for_the_line_there(position: float, line: int, count_words: CountTokens) -> None:
    document = KeyValue(split="dev", count_tokens=count_words).draw(random.Random(0), tokens=160, position=position)
    (question,) = document.questions
    assert question.support == (str(document.context).splitlines()[line],)


def test_more_tokens_than_there_are_keys_for_are_refused(count_words: CountTokens) -> None:
    with pytest.raises(InvalidInput, match="tokens: got 1000000, expected at most"):
        KeyValue(split="dev", count_tokens=count_words).draw(random.Random(0), tokens=1_000_000)


def test_no_question_is_refused(count_words: CountTokens) -> None:
    with pytest.raises(InvalidInput, match="questions: got 0, expected at least 1"):
        KeyValue(split="dev", count_tokens=count_words, questions=0)
