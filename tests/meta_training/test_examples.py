"""The examples that the project ships: long enough, answered by their documents, and not in the training data."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from meta_training.tasks.students import FIRST_NAMES, LAST_NAMES
from meta_training.tasks.whereabouts import derive_questions
from perk.base_model import load_tokenizer
from perk.scoring import normalise_answer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _read(name: str) -> tuple[str, list[dict[str, object]]]:
    lines = (EXAMPLES / f"{name}.questions.jsonl").read_text(encoding="utf-8").splitlines()
    return (EXAMPLES / f"{name}.txt").read_text(encoding="utf-8"), [json.loads(line) for line in lines]


@pytest.mark.parametrize(("name", "tokens"), [("register", 1000), ("story", 1000), ("errands", 480), ("article", 600)])
def test_each_document_is_long(name: str, tokens: int) -> None:
    assert len(load_tokenizer().encode(_read(name)[0])) >= tokens


def test_the_register_answers_its_questions() -> None:
    text, questions = _read("register")
    asked = set()
    for question in questions:
        match = re.fullmatch(r"What is the (\w+) of the student with ID (\d{7})\?", str(question["question"]))
        assert match
        (line,) = [line for line in text.splitlines() if line.startswith(f"Student <{match[2]}>, ")]
        assert f", {match[1].capitalize()}: {question['answer']}, " in f"{line}, "
        asked.add((match[1], match[2]))
    assert len({number for _, number in asked}) == len(questions) == 12
    assert {field for field, _ in asked} == {"name", "year", "school", "major", "grade"}


def test_no_student_of_the_register_can_be_trained_on() -> None:
    text, _ = _read("register")
    students = re.findall(r"^Student <(\d{7})>, Name: ([^,]+),", text, re.MULTILINE)
    assert len(students) == len(text.splitlines()) >= 26
    for number, name in students:
        first, last = name.split(" ")
        assert int(number) % 7 == 0, "training draws no multiples of 7"
        assert first not in FIRST_NAMES
        assert last not in LAST_NAMES


def test_the_last_event_of_each_actor_answers_the_story() -> None:
    text, questions = _read("story")
    events = re.findall(r"^(\w+) Event (\d+): (\w+) [\w ]+ to the (\w+)\.$", text, re.MULTILINE)
    assert 8 <= len(events) <= 10
    last = {actor: place for actor, _, _, place in sorted(events, key=lambda event: int(event[1]))}
    assert {q["question"]: q["answer"] for q in questions} == {f"Where is {a}?": place for a, place in last.items()}
    for actor in last:
        numbers = [int(number) for name, number, mover, _ in events if name == actor == mover]
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_the_errands_answer_their_questions_by_who_had_what() -> None:
    text, questions = _read("errands")
    numbered = sorted(re.findall(r"^(\w+) Event (\d+): (.*)$", text, re.MULTILINE))
    facts = [fact for _, _, fact in numbered]
    assert Counter(actor for actor, _, _ in numbered) == {"Ines": 5, "Petra": 6, "Tomas": 4}
    for supporting in (1, 2, 3):
        derived = {q.question: q.answer for q in derive_questions(facts, supporting, in_order=False)}
        for question in questions:
            assert derived.get(str(question["question"]), question["answer"]) == question["answer"]
            if question["question"] in derived:
                questions = [other for other in questions if other != question]
    assert questions == [], "a question that the story does not answer"


def test_the_article_holds_an_answer_to_each_question() -> None:
    text, questions = _read("article")
    assert len(questions) == 6
    for question in questions:
        assert normalise_answer(str(question["answer"])) in normalise_answer(text)
