"""Student Records: registers in the paper's wording, and questions that their lines answer."""

from __future__ import annotations

import random
import re

import pytest

from meta_training.tasks import CountTokens, Document
from meta_training.tasks.student_records import QuestionKind, StudentRecords
from meta_training.tasks.students import FIRST_NAMES, LAST_NAMES
from perk.errors import InvalidInput

_LINE = re.compile(
    r"Student <(?P<id>[1-9]\d{6})>, Name: (?P<name>[^,]+), Year: (?P<year>[^,]+), School: (?P<school>[^,]+), "
    r"Major: (?P<major>[^,]+), Grade: (?P<grade>\d+)"
)
SEEDS = range(20)


def _register(document: Document) -> dict[str, dict[str, str]]:
    """Records of a register by identity number; every line must be one."""
    assert isinstance(document.context, str)
    records = {}
    for line in document.context.splitlines():
        match = _LINE.fullmatch(line)
        assert match, line
        records[match["id"]] = match.groupdict()
    return records


def _documents(task: StudentRecords, tokens: int = 200) -> list[Document]:
    return [task.draw(random.Random(seed), tokens=tokens) for seed in SEEDS]


def test_a_register_has_one_line_a_student_with_numbers_that_differ(count_words: CountTokens) -> None:
    for document in _documents(StudentRecords(split="train", count_tokens=count_words, records=30)):
        records = _register(document)
        assert len(records) == 30
        assert all(0 <= int(record["grade"]) <= 100 for record in records.values())


def test_recall_questions_ask_for_a_field_of_a_student_and_never_twice(count_words: CountTokens) -> None:
    fields = set()
    for document in _documents(StudentRecords(split="train", count_tokens=count_words, records=6, questions=10)):
        records = _register(document)
        assert len(document.questions) == len({q.question for q in document.questions}) == 10
        for question in document.questions:
            match = re.fullmatch(r"What is the (\w+) of the student with ID (\d+)\?", question.question)
            assert match
            assert question.answer == records[match[2]][match[1]]
            assert question.support[0] in document.context
            assert question.task == "student-recall"
            fields.add(match[1])
    assert fields == {"name", "year", "school", "major", "grade"}


def test_a_small_register_yields_every_recall_question_there_is(count_words: CountTokens) -> None:
    task = StudentRecords(split="train", count_tokens=count_words, records=1, questions=100)
    document = task.draw(random.Random(0), tokens=1)
    assert len(document.questions) == 5


def test_relation_questions_are_answered_by_comparing_two_records(count_words: CountTokens) -> None:
    answers = set()
    wordings = {
        r"Do student (\d+) and student (\d+) have the same major\?": "major",
        r"Do student (\d+) and student (\d+) study at the same school\?": "school",
        r"Do student (\d+) and student (\d+) study in the same year\?": "year",
    }
    for document in _documents(StudentRecords(split="train", count_tokens=count_words, kinds=("relation",))):
        records = _register(document)
        for question in document.questions:
            field = "grade"
            match = re.fullmatch(r"Does student (\d+) has a higher grade than student (\d+)\?", question.question)
            if match:
                holds = int(records[match[1]][field]) > int(records[match[2]][field])
            else:
                (match, field), *_ = (
                    (match, field)
                    for wording, field in wordings.items()
                    if (match := re.fullmatch(wording, question.question))
                )
                assert match[1] != match[2]
                holds = records[match[1]][field] == records[match[2]][field]
            assert question.answer == ("Yes" if holds else "No")
            first, second = (records[match[place]] for place in (1, 2))
            assert [_LINE.fullmatch(line)["id"] for line in question.support] == [match[1], match[2]]  # type: ignore[index]
            values = f"{field.capitalize()}: {first[field]} and {second[field]}: "
            assert question.derivation.removeprefix(values) in {"higher", "lower", "same", "different"}
            answers.add(question.answer)
    assert answers == {"Yes", "No"}


def test_aggregate_questions_are_answered_by_all_grades(count_words: CountTokens) -> None:
    task = StudentRecords(split="train", count_tokens=count_words, kinds=("aggregate",), records=9, questions=20)
    asked = set()
    for document in _documents(task):
        grades = [int(record["grade"]) for record in _register(document).values()]
        expected = {"highest": max(grades), "lowest": min(grades), "average": round(sum(grades) / 9)}
        for question in document.questions:
            match = re.fullmatch(r"What is the (\w+) grade of all students\?", question.question)
            assert match
            assert question.answer == str(expected[match[1]])
            if match[1] == "average":
                assert question.support == (), "all records are too many to recall"
            else:
                (line,) = question.support
                assert line in str(document.context).splitlines()
                assert line.endswith(f"Grade: {question.answer}")
            asked.add(match[1])
    assert asked == set(expected)


def test_several_kinds_share_the_questions(count_words: CountTokens) -> None:
    task = StudentRecords(split="train", count_tokens=count_words, kinds=("recall", "relation"), questions=8)
    for document in _documents(task):
        tasks = [question.task for question in document.questions]
        assert tasks.count("student-recall") >= 3
        assert tasks.count("student-relation") >= 3


def test_the_length_is_as_asked(count_words: CountTokens) -> None:
    task = StudentRecords(split="train", count_tokens=count_words)
    longest_line = 22
    for tokens in (60, 300, 1000):
        for document in _documents(task, tokens):
            length = count_words(str(document.context)) + len(_register(document))  # a line end is a token
            assert tokens - longest_line < length <= tokens
    assert len(_register(task.draw(random.Random(0), tokens=1))) == 1


def test_no_student_of_the_one_split_is_in_the_other(count_words: CountTokens) -> None:
    train, dev = (
        {number for document in _documents(task) for number in _register(document)}
        for task in (
            StudentRecords(split="train", count_tokens=count_words),
            StudentRecords(split="dev", count_tokens=count_words),
        )
    )
    assert not any(int(number) % 7 == 0 for number in train)
    assert all(int(number) % 7 == 0 for number in dev)


def test_the_same_seed_draws_the_same_register(count_words: CountTokens) -> None:
    task = StudentRecords(split="dev", count_tokens=count_words)
    assert task.draw(random.Random(5), tokens=300) == task.draw(random.Random(5), tokens=300)
    assert task.draw(random.Random(5), tokens=300) != task.draw(random.Random(6), tokens=300)


@pytest.mark.parametrize(("position", "line"), [(0.0, 0), (0.5, 5), (1.0, 9)])
def test_a_position_asks_for_the_student_there(position: float, line: int, count_words: CountTokens) -> None:
    task = StudentRecords(split="dev", count_tokens=count_words, records=10)
    document = task.draw(random.Random(0), tokens=1, position=position)
    (question,) = document.questions
    assert question.support == (str(document.context).splitlines()[line],)


def test_a_position_is_refused_where_a_question_is_about_several_students(count_words: CountTokens) -> None:
    task = StudentRecords(split="dev", count_tokens=count_words, kinds=("relation",))
    with pytest.raises(InvalidInput, match=r"position: got 0.5, .*student-relation"):
        task.draw(random.Random(0), tokens=100, position=0.5)


def test_near_numbers_share_their_first_digits_with_another(count_words: CountTokens) -> None:
    task = StudentRecords(split="train", count_tokens=count_words, records=40, near_share=1.0)
    document = task.draw(random.Random(0), tokens=1)
    numbers = [line[len("Student <") : len("Student <") + 7] for line in str(document.context).splitlines()]
    assert len(set(numbers)) == 40
    assert len({number[:2] for number in numbers}) == 1
    assert len({number[:5] for number in numbers}) > 1


def test_a_share_out_of_range_is_refused(count_words: CountTokens) -> None:
    with pytest.raises(InvalidInput, match=r"near_share: got 1.5, expected from 0 to 1"):
        StudentRecords(split="train", count_tokens=count_words, near_share=1.5)


@pytest.mark.parametrize(
    ("kinds", "questions", "records", "message"),
    [
        (("memory",), 8, None, "kinds: got 'memory', expected one of recall, relation, aggregate"),
        ((), 8, None, "kinds: got none"),
        (("recall",), 0, None, "questions: got 0, expected at least 1"),
        (("recall",), 8, 0, "records: got 0, expected 1 to 128571"),
        (("relation",), 8, 1, "records: got 1, expected 2 to 128571"),
    ],
)
def test_bad_options_are_refused_by_name(
    kinds: tuple[QuestionKind, ...], questions: int, records: int | None, message: str, count_words: CountTokens
) -> None:
    with pytest.raises(InvalidInput, match=message):
        StudentRecords(split="dev", count_tokens=count_words, kinds=kinds, questions=questions, records=records)


def test_the_pools_hold_no_name_twice() -> None:
    assert len(set(FIRST_NAMES)) == len(FIRST_NAMES) > 100
    assert len(set(LAST_NAMES)) == len(LAST_NAMES) > 100
