"""What an answerer tells the front about a question, in this order: accepted, pieces; or a failure at any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from perk.answer import AnswerDelta

__all__ = ["Accepted", "Event", "Failed", "Piece"]


@dataclass(frozen=True)
class Accepted:
    """The question has its adapter and is in the model's queue."""


@dataclass(frozen=True)
class Piece:
    """Further text.

    Attributes:
        delta: the text.
        prompt_tokens: of the question.
        completion_tokens: so far.
        waited_seconds: that the question was in the queue before the model took it up.
    """

    delta: AnswerDelta
    prompt_tokens: int
    completion_tokens: int
    waited_seconds: float


@dataclass(frozen=True)
class Failed:
    """The question has ended with one of our errors, taken apart: their constructors do not take what they keep."""

    kind: type[Exception]
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Take an error apart."""
        return cls(type(error), error.args, dict(vars(error)))

    @property
    def error(self) -> Exception:
        """The error, put together again."""
        error = self.kind.__new__(self.kind, *self.arguments)
        error.args = self.arguments
        vars(error).update(self.attributes)
        return error


Event = Accepted | Piece | Failed
