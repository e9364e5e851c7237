"""A document with questions about it: what tasks yield, files hold, and training and evaluation take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Document", "Question"]


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        question: its text.
        answer: the expected answer.
        answers: other accepted answers.
        support: sentences of the document that hold the answer, where known, and perhaps a step from there to it.
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
