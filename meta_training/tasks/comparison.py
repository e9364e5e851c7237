"""What relation questions rest on: two values, how they compare, and whether a relation holds.

A small model asked for Yes or No alone did not learn to compare in 2,000 examples (docs/results.md). A word that says
how the values compare, told before the answer, it learns in about as many.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

from meta_training.document import Question
from meta_training.tasks.students import draw_student

__all__ = ["RELATED_FIELDS", "Comparison", "RelatedField", "draw_comparison_question"]

RelatedField = Literal["grade", "major", "school", "year"]
RELATED_FIELDS = get_args(RelatedField)
_NEAR_GRADES = 9


@dataclass(frozen=True)
class Comparison:
    """Two students' values of a field: which grade is higher, or whether the others are the same."""

    field: RelatedField
    first: str | int
    second: str | int

    @property
    def holds(self) -> bool:
        """Whether the first grade is higher; of other fields, whether the two are the same."""
        if isinstance(self.first, int) and isinstance(self.second, int):
            return self.first > self.second
        return self.first == self.second

    @property
    def verdict(self) -> str:
        """How the first value stands to the second, in a word."""
        if self.first == self.second:
            return "same"
        if isinstance(self.first, int) and isinstance(self.second, int):
            return "higher" if self.first > self.second else "lower"
        return "different"

    @property
    def answer(self) -> str:
        """Yes or No."""
        return "Yes" if self.holds else "No"

    def line(self) -> str:
        """Both values and the verdict: the last step before the answer."""
        return f"{self.field.capitalize()}: {self.first} and {self.second}: {self.verdict}"


def draw_comparison_question(rng: random.Random) -> Question:
    """A question that names both values itself and needs no document: as often Yes as No, half about grades.

    A third of the grades differ by 9 at most, which random ones seldom do.
    """
    # As among relations: which of two numbers is higher is harder to learn than whether two words are the same.
    field: RelatedField = "grade" if rng.random() < 0.5 else rng.choice(("major", "school", "year"))
    wanted, near = rng.random() < 0.5, rng.random() < 1 / 3
    while True:
        first, second = (getattr(draw_student(rng, number=0), field) for _ in range(2))
        if field != "grade" and wanted:
            second = first
        comparison = Comparison(field, first, second)
        if comparison.holds == wanted and not (field == "grade" and near and abs(first - second) > _NEAR_GRADES):
            break
    if field == "grade":
        text = f"Is a grade of {first} higher than a grade of {second}?"
    else:
        text = f"Are the {field}s {first} and {second} the same?"
    return Question(text, comparison.answer, support=(comparison.line(),), task="student-comparison")
