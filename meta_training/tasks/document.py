"""What a task yields: a document with questions about it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["CountTokens", "Document", "Question", "Split", "Task"]

Split = Literal["train", "dev"]
CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        question: its text.
        answer: the expected answer.
        answers: other accepted answers.
        support: sentences of the document that hold the answer, where known.
        task: name of the task it belongs to.
    """

    question: str
    answer: str
    answers: tuple[str, ...] = ()
    support: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True)
class Document:
    """A document, one text or a list of passages, with its questions."""

    context: str | tuple[str, ...]
    questions: tuple[Question, ...]


class Task(Protocol):
    """Draws documents without end."""

    name: str

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """A fresh document.

        Args:
            rng: source of all randomness.
            tokens: about how many tokens the document should have.
            position: place of the relevant passage, 0 (start) to 1 (end); None: anywhere.
        """
        ...
