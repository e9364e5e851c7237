"""Questions answered as one batch that they join and leave between two tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

from perk.answer_batch import AnswerBatch
from perk.answer_row import AnswerRow
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from service.engine.jobs import Question

__all__ = ["AnswerJob"]


class AnswerJob:
    """A batch of questions; a slice reads one new question, or writes one token of each of the others.

    Attributes:
        rows: questions in the last slice; 0 where it had none.
        to_retry: questions that an error has thrown out before they had any answer; whoever asks takes them away.
        answer_seconds: that the last whole answer took from its first slice on; None before there was one.
    """

    kind = "answer"

    def __init__(self) -> None:
        self.rows = 0
        self.to_retry: list[Question] = []
        self.answer_seconds: float | None = None
        self._joining: list[Question] = []
        # By the number of their row, which no other question of the same batch ever gets.
        self._answered: dict[int, tuple[AnswerRow, Question]] = {}
        self._batch: AnswerBatch | None = None

    @property
    def questions(self) -> Sequence[Question]:
        """The questions in the batch."""
        return [*(question for _, question in self._answered.values()), *self._joining]

    @property
    def done(self) -> bool:
        """Whether no question is left; more may be added."""
        return not self._answered and not self._joining

    def add(self, question: Question) -> None:
        """Let a question join at the next slice."""
        self._joining.append(question)

    def advance(self, model: PerkModel) -> None:
        """Run one slice."""
        try:
            if self._batch is None:
                self._batch = model.start_batch()
            self._leave(self._batch)
            self._join(self._batch)
            self.rows = len(self._answered)
            for delta in self._batch.advance():
                row, question = self._answered[delta.row]
                question.sent_text = True
                question.completion_tokens = len(row.ids)
                question.send(delta)
                if delta.finish_reason is not None:
                    self._end(row, question)
        except Exception as error:  # noqa: BLE001 - these questions', whatever it is
            self._fail(error)
        if self.done:
            self._batch = None

    def _leave(self, batch: AnswerBatch) -> None:
        self._joining = [question for question in self._joining if not question.ended()]
        for number, (row, question) in list(self._answered.items()):
            question.completion_tokens = len(row.ids)
            if question.ended():
                batch.cancel(row)
                del self._answered[number]

    def _join(self, batch: AnswerBatch) -> None:
        while self._joining:
            question = self._joining[0]
            question.started_at = time.monotonic()
            try:
                row = batch.add(question.request)
            except InvalidInput as error:
                question.send(error)
            else:
                question.prompt_tokens = len(row.prompt)
                self._answered[row.number] = (row, question)
            del self._joining[0]

    def _end(self, row: AnswerRow, question: Question) -> None:
        del self._answered[row.number]
        if question.started_at is not None:
            self.answer_seconds = time.monotonic() - question.started_at

    def _fail(self, error: Exception) -> None:
        thrown_out = self.questions
        for question in thrown_out:
            if len(thrown_out) > 1 and not question.sent_text:
                question.alone = True
                self.to_retry.append(question)
            else:
                question.send(error)
        self._batch = None
        self._answered.clear()
        self._joining.clear()
