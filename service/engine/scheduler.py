"""Whose slice is next."""

from __future__ import annotations

from collections import deque

from service.engine.jobs import AnswerRound, CallJob, EncodeJob, Job, Question
from service.errors import NotReady

__all__ = ["Scheduler"]

# Rows of one batch. More would make each token of all of them slower.
_MAX_ROWS = 8
# Rounds that take turns: with one alone, a short question would wait for the end of the longest answer.
_MAX_ROUNDS = 2
# Answers may take this many times as long as the last slice of an encode before the next one is due.
_ANSWER_SHARE = 2.0
# Before a slice has been measured.
_FIRST_SLICE_SECONDS = 0.5


class Scheduler:
    """Holds the jobs that wait and decides which is advanced next. Not thread-safe: its user locks.

    Short calls go first. Questions that wait are answered together, in rounds, and go before encodes, but only so
    far that an encode has a third of the time: a question waits for a slice and not for an encode, and no flood of
    questions holds up an encode for ever.
    """

    def __init__(self) -> None:
        self._calls: deque[CallJob] = deque()
        self._questions: deque[Question] = deque()
        self._rounds: deque[AnswerRound] = deque()
        self._encodes: deque[EncodeJob] = deque()
        self._answer_seconds = 0.0
        self._slice_seconds = _FIRST_SLICE_SECONDS

    @property
    def waiting_questions(self) -> int:
        """Questions that no round has taken up."""
        return sum(not question.cancelled for question in self._questions)

    def add_call(self, call: CallJob) -> None:
        """Take a short call."""
        self._calls.append(call)

    def add_question(self, question: Question) -> None:
        """Take a question."""
        self._questions.append(question)

    def add_encode(self, encode: EncodeJob) -> None:
        """Take an encode."""
        self._encodes.append(encode)

    def abandon_encodes(self) -> None:
        """End all encodes without a result."""
        while self._encodes:
            self._encodes.popleft().abandon()

    def abandon_questions(self) -> None:
        """End all questions, those being answered included, with an error."""
        running = [question for answer_round in self._rounds for question in answer_round.questions]
        for question in (*running, *self._questions):
            question.cancel()
            question.send(NotReady("stopping", "the service is stopping"))
        self._questions.clear()

    def next_job(self) -> Job | None:
        """The job to advance by one slice, or None where there is nothing to do."""
        self._forget_ended()
        if self._calls:
            return self._calls.popleft()
        if self._encodes and self._answer_seconds >= _ANSWER_SHARE * self._slice_seconds:
            return self._encodes[0]
        if self._questions and len(self._rounds) < _MAX_ROUNDS:
            # At the front: the first token is what a client waits for.
            self._rounds.appendleft(AnswerRound(self._take_rows()))
        if self._rounds:
            self._rounds.rotate(-1)
            return self._rounds[-1]
        return self._encodes[0] if self._encodes else None

    def note(self, job: Job, seconds: float) -> None:
        """Learn how long a slice took."""
        if isinstance(job, AnswerRound):
            self._answer_seconds += seconds
        elif isinstance(job, EncodeJob):
            self._answer_seconds = 0.0
            self._slice_seconds = seconds

    def _forget_ended(self) -> None:
        for ended in [answer_round for answer_round in self._rounds if answer_round.done]:
            self._questions.extendleft(reversed(ended.to_retry))
            self._rounds.remove(ended)
        while self._encodes and self._encodes[0].done:
            self._encodes.popleft()
        while self._questions and self._questions[0].cancelled:
            self._questions.popleft()

    def _take_rows(self) -> list[Question]:
        rows = [self._questions.popleft()]
        while self._questions and len(rows) < _MAX_ROWS and not (rows[0].alone or self._questions[0].alone):
            rows.append(self._questions.popleft())
        return rows
