"""A document with questions about it: what tasks yield, files hold, and training and evaluation take."""

from __future__ import annotations

from dataclasses import dataclass

from perk.segments import join_passages

__all__ = ["Document", "Question"]


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        question: its text.
        answer: the expected answer.
        answers: other accepted answers.
        support: sentences of the document that hold the answer, where known.
        task: name of the task it belongs to.
        derivation: the step from the support to the answer, where there is one: it is told between them.
    """

    question: str
    answer: str
    answers: tuple[str, ...] = ()
    support: tuple[str, ...] = ()
    task: str = ""
    derivation: str = ""

    @property
    def paragraph(self) -> str:
        """The support on one line, as parts are told (`perk.parts`)."""
        return " ".join(" ".join(self.support).split())

    @property
    def grounds(self) -> tuple[str, ...]:
        """What is told before the answer: the support, then the derivation."""
        return (*self.support, self.derivation) if self.derivation else self.support


@dataclass(frozen=True)
class Document:
    """A document, one text or a list of passages, with its questions."""

    context: str | tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The context as one text, of which passages are paragraphs."""
        return self.context if isinstance(self.context, str) else join_passages(self.context)
