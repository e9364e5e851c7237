"""Natural Questions: paragraphs with the search questions that they answer, joined to the asked length."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from meta_training.tasks import CountTokens
from meta_training.tasks.natural_questions import NaturalQuestions
from perk.errors import InvalidInput

SEEDS = range(20)
PARAGRAPH_WORDS = 18


@pytest.mark.usefixtures("data_root")
def test_a_short_document_is_one_paragraph_with_its_questions(count_words: CountTokens) -> None:
    task = NaturalQuestions(split="dev", count_tokens=count_words)
    numbers = set()
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=1)
        assert len(document.context) == 1
        numbers.add(len(document.questions))
        for question in document.questions:
            assert question.answer in document.context[0]
            assert question.task == "nq"
    assert numbers == {1, 2}, "the paragraph that answers two questions brings both"


@pytest.mark.usefixtures("data_root")
def test_search_questions_are_put_as_sentences(count_words: CountTokens) -> None:
    document = NaturalQuestions(split="dev", count_tokens=count_words).draw(random.Random(0), tokens=1000)
    questions = {question.question: question for question in document.questions}
    assert questions["Which river flows through dev town 3?"].answer == "river 3"
    assert questions["Which river flows through dev town 3?"].answers == ("river 3", "the river 3")
    assert questions["How many mills has dev town 0?"].answer == "two"


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("paragraphs", [2, 5, 20])
def test_paragraphs_fill_the_asked_length_and_none_comes_twice(paragraphs: int, count_words: CountTokens) -> None:
    task = NaturalQuestions(split="train", count_tokens=count_words)
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=paragraphs * PARAGRAPH_WORDS)
        assert len(document.context) == len(set(document.context)) == paragraphs


@pytest.mark.usefixtures("data_root")
def test_the_splits_are_the_two_files(count_words: CountTokens) -> None:
    for split in ("train", "dev"):
        task = NaturalQuestions(split=split, count_tokens=count_words)
        document = task.draw(random.Random(0), tokens=10_000)
        assert len(document.context) == {"train": 30, "dev": 8}[split], "all that there are"
        assert all(f"The {split} town" in paragraph for paragraph in document.context)


def test_training_leaves_out_what_development_asks_about(data_root: Path, count_words: CountTokens) -> None:
    train, dev = (data_root / "nq" / f"{split}.jsonl" for split in ("train", "dev"))
    shared = {**json.loads(dev.read_text().splitlines()[0]), "question": "which of them has mills"}
    train.write_text(train.read_text() + json.dumps(shared) + "\n")
    document = NaturalQuestions(split="train", count_tokens=count_words).draw(random.Random(0), tokens=10_000)
    assert len(document.context) == 30
    assert shared["context"] not in document.context


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(("position", "place"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_position_places_the_paragraph_asked_about(position: float, place: int, count_words: CountTokens) -> None:
    task = NaturalQuestions(split="dev", count_tokens=count_words)
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=5 * PARAGRAPH_WORDS, position=position)
        assert len(document.context) == 5
        town = document.questions[0].question.split("town ")[1].rstrip("?")
        assert document.context[place].startswith(f"The dev town {town}.")


@pytest.mark.usefixtures("data_root")
def test_training_may_ask_more_than_people_did(count_words: CountTokens) -> None:
    asked = NaturalQuestions(split="train", count_tokens=count_words).draw(random.Random(3), tokens=100)
    more = NaturalQuestions(split="train", count_tokens=count_words, cloze=3).draw(random.Random(3), tokens=100)
    assert more.context == asked.context
    assert {q.question for q in asked.questions} < {q.question for q in more.questions}
    assert {q.task for q in more.questions} == {"nq"}
    dev = NaturalQuestions(split="dev", count_tokens=count_words, cloze=3).draw(random.Random(3), tokens=1)
    assert len(dev.questions) <= 2, "development asks what people asked"


@pytest.mark.usefixtures("data_root")
def test_the_support_is_the_paragraph_with_the_answer(count_words: CountTokens) -> None:
    for seed in SEEDS:
        document = NaturalQuestions(split="train", count_tokens=count_words).draw(random.Random(seed), tokens=60)
        for question in document.questions:
            (support,) = question.support
            assert support in document.context
            assert any(answer in support for answer in (question.answer, *question.answers))


@pytest.mark.usefixtures("data_root")
def test_fewer_than_no_made_questions_are_refused(count_words: CountTokens) -> None:
    with pytest.raises(InvalidInput, match="cloze"):
        NaturalQuestions(split="train", count_tokens=count_words, cloze=-1)


def test_a_damaged_file_is_refused_with_its_line(data_root: Path, count_words: CountTokens) -> None:
    file = data_root / "nq" / "dev.jsonl"
    file.write_text(file.read_text() + '{"context": "A town.", "question": 4, "answer": "x"}\n')
    with pytest.raises(InvalidInput, match="line 10, question"):
        NaturalQuestions(split="dev", count_tokens=count_words)
