"""What relation questions rest on: two values, how they compare, and whether a relation holds.

A small model asked for Yes or No alone did not learn to compare in 2,000 examples (docs/notebook.md). A word that says
how the values compare, told before the answer, it learns in a few thousand.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

__all__ = ["Comparison", "RelatedField", "draw_relation_field"]

RelatedField = Literal["grade", "major", "school", "year"]

_SAME: dict[RelatedField, str] = {
    "major": "have the same major",
    "school": "study at the same school",
    "year": "study in the same year",
}


@dataclass(frozen=True)
class Comparison:
    """Two students' values of a field: which grade is higher, or whether the others are the same."""

    field: RelatedField
    first: str | int
    second: str | int

    @property
    def verdict(self) -> str:
        """How the first value stands to the second, in a word."""
        if self.first == self.second:
            return "same"
        if isinstance(self.first, int) and isinstance(self.second, int):
            return "higher" if self.first > self.second else "lower"
        return "different"

    @property
    def holds(self) -> bool:
        """Whether the first grade is higher; of other fields, whether the two are the same."""
        return self.verdict == ("higher" if self.field == "grade" else "same")

    @property
    def answer(self) -> str:
        """Yes or No."""
        return "Yes" if self.holds else "No"

    @property
    def values(self) -> str:
        """Both values, up to the verdict."""
        return f"{self.field.capitalize()}: {self.first} and {self.second}:"

    def line(self) -> str:
        """Both values and the verdict: the last step before the answer."""
        return f"{self.values} {self.verdict}"

    def question(self, first: int, second: int) -> str:
        """The question about two students, by their numbers, in the paper's wording."""
        if self.field == "grade":
            return f"Does student {first} has a higher grade than student {second}?"
        return f"Do student {first} and student {second} {_SAME[self.field]}?"


def draw_relation_field(rng: random.Random) -> RelatedField:
    """Grade in half of the cases: which of two numbers is higher is harder than whether two words are the same."""
    return "grade" if rng.random() < 0.5 else rng.choice(("major", "school", "year"))
