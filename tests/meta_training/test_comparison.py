"""Comparisons of two values: what relations end with, and questions of their own."""

from __future__ import annotations

import random
import re

import pytest

from meta_training.tasks.comparison import Comparison, RelatedField, draw_comparison_question


@pytest.mark.parametrize(
    ("field", "first", "second", "line", "answer"),
    [
        ("grade", 82, 95, "Grade: 82 and 95: lower", "No"),
        ("grade", 100, 99, "Grade: 100 and 99: higher", "Yes"),
        ("grade", 70, 70, "Grade: 70 and 70: same", "No"),
        ("grade", 9, 10, "Grade: 9 and 10: lower", "No"),
        ("year", "Senior", "Senior", "Year: Senior and Senior: same", "Yes"),
        ("major", "Law", "Music", "Major: Law and Music: different", "No"),
    ],
)
def test_a_comparison_says_how_the_values_stand_and_what_follows(
    field: RelatedField, first: str | int, second: str | int, line: str, answer: str
) -> None:
    comparison = Comparison(field, first, second)
    assert (comparison.line(), comparison.answer) == (line, answer)


def test_comparison_questions_name_both_values_and_are_balanced() -> None:
    rng = random.Random(0)
    fields: dict[str, list[str]] = {}
    near = 0
    for _ in range(600):
        question = draw_comparison_question(rng)
        grades = re.fullmatch(r"Is a grade of (\d+) higher than a grade of (\d+)\?", question.question)
        others = re.fullmatch(r"Are the (major|school|year)s (.+) and (.+) the same\?", question.question)
        if grades:
            field, first, second = "grade", int(grades[1]), int(grades[2])
            holds = first > second
            near += abs(first - second) <= 9
            comparison = Comparison("grade", first, second)
        else:
            assert others
            field = others[1]
            holds = others[2] == others[3]
            comparison = Comparison("year", others[2], others[3])
        assert question.answer == ("Yes" if holds else "No")
        (line,) = question.support
        assert line.endswith(f": {comparison.verdict}")
        fields.setdefault(field, []).append(question.answer)
    assert set(fields) == {"grade", "major", "school", "year"}
    assert 240 < len(fields["grade"]) < 360
    for answers in fields.values():
        assert 0.35 < answers.count("Yes") / len(answers) < 0.65
    assert 0.3 < near / len(fields["grade"]) < 0.6
