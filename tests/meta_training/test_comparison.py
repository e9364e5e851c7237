"""Comparisons of two values: what relations end with."""

from __future__ import annotations

import pytest

from meta_training.tasks.comparison import Comparison, RelatedField


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


@pytest.mark.parametrize(
    ("field", "question"),
    [
        ("grade", "Does student 1 has a higher grade than student 2?"),
        ("major", "Do student 1 and student 2 have the same major?"),
        ("school", "Do student 1 and student 2 study at the same school?"),
        ("year", "Do student 1 and student 2 study in the same year?"),
    ],
)
def test_a_relation_is_asked_in_the_papers_words(field: RelatedField, question: str) -> None:
    assert Comparison(field, "", "").question(1, 2) == question
