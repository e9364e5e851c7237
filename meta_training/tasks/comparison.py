"""What relation questions rest on: two values, how they compare, and whether a relation holds.

A small model asked for Yes or No alone did not learn to compare in 2,000 examples (docs/results.md). A word that says
how the values compare, told before the answer, it learns in about as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Comparison", "RelatedField"]

RelatedField = Literal["grade", "major", "school", "year"]


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
