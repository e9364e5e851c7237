"""Answering: greedy or sampled decoding of some questions to their ends, each under its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perk.answer_batch import AnswerBatch
from perk.answer_request import AnswerRequest
from perk.answer_row import AnswerDelta
from perk.errors import InvalidInput

__all__ = ["Answer", "AnswerDelta", "AnswerRequest", "Answering"]


@dataclass(frozen=True)
class Answer:
    """A whole answer, see `AnswerDelta`; `completion_tokens` counts what was recalled before it too."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    support: str = ""


class Answering:
    """A fixed list of questions, answered as one batch. The row of a delta is the question's index."""

    def __init__(self, batch: AnswerBatch, requests: Sequence[AnswerRequest]) -> None:
        """Ask in an empty batch."""
        if not requests:
            raise InvalidInput("requests", "none", "at least one question")
        self._batch = batch
        self._rows = [self._batch.add(request) for request in requests]
        self.prompt_tokens = [len(row.prompt) for row in self._rows]

    @property
    def done(self) -> bool:
        """Whether every row has finished."""
        return not self._batch.rows

    @property
    def completion_tokens(self) -> list[int]:
        """Tokens produced so far, by row."""
        return [len(row.ids) for row in self._rows]

    def cancel(self, row: int) -> None:
        """Stop producing tokens for a row; nothing more is reported for it."""
        self._batch.cancel(self._rows[row])

    def advance(self) -> list[AnswerDelta]:
        """One token for every unfinished row, once all of them have read their prompts and recalled lines."""
        deltas = self._batch.advance()
        while self._batch.reading:
            deltas += self._batch.advance()
        return deltas
