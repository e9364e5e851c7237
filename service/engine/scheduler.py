"""Whose slice is next."""

from __future__ import annotations

from collections import deque

from service.engine.answer_job import AnswerJob
from service.engine.fair_queue import FairQueue
from service.engine.jobs import CallJob, EncodeJob, EncodeRequest, Job, Question
from service.engine.recital_job import RecitalJob
from service.errors import NotReady

__all__ = ["SHORT_CHARACTERS", "Scheduler"]

# Rows of the batch. More make each token of all of them slower; fewer let short answers wait for the ends of long ones.
_MAX_ROWS = 16
# Answers may take this many times as long as the last slice of an encode before the next one is due.
_ANSWER_SHARE = 2.0
# Before a slice has been measured.
_FIRST_SLICE_SECONDS = 0.5
SHORT_CHARACTERS = 8192
"""Most characters of a short document: it is encoded with others, and does not wait for a long one."""


class Scheduler:
    """Holds the jobs that wait and decides which is advanced next. Not thread-safe: its user locks.

    Short calls go first. Questions are answered in one batch that they join as soon as a row is free, and go before
    encodes, but only so far that encodes have a third of the time: a question waits for a slice and not for an encode,
    and no flood of questions holds up an encode for ever. A long document and a group of short ones take turns. Within
    both queues the owners take turns. Where there is nothing else to do, documents' parts are recalled before anyone
    asks.
    """

    def __init__(self, *, memory_budget: int, most_together: int = 1) -> None:
        """Prepare an empty schedule.

        Args:
            memory_budget: bytes for activations of all encodes that run.
            most_together: most short documents of one encode.
        """
        self.most_together = most_together
        """Most documents of one encode; lowered where their adapters do not fit."""
        # Two encodes may have begun.
        self._memory_budget = memory_budget // 2
        self._calls: deque[CallJob] = deque()
        self._questions: FairQueue[Question] = FairQueue()
        self._answers = AnswerJob()
        # The batch, and those of questions that are answered alone, in turns.
        self._answer_jobs: deque[AnswerJob] = deque([self._answers])
        self._requests: FairQueue[EncodeRequest] = FairQueue()
        self._encodes: deque[EncodeJob] = deque()
        # By the document, in the order in which they came.
        self._recitals: dict[str, RecitalJob] = {}
        self._answer_seconds = 0.0
        self._slice_seconds = _FIRST_SLICE_SECONDS

    @property
    def waiting_questions(self) -> int:
        """Questions that have no row yet."""
        return sum(not question.cancelled for question in self._questions)

    def add_call(self, call: CallJob) -> None:
        """Take a short call."""
        self._calls.append(call)

    def add_question(self, question: Question, owner: str = "") -> None:
        """Take a question."""
        self._questions.add(owner, question)

    def add_encode(self, request: EncodeRequest, owner: str = "") -> None:
        """Take a document to encode."""
        self._requests.add(owner, request)

    def add_recital(self, recital: RecitalJob) -> None:
        """Take a document whose parts are to be recalled, in the place of what there was of it."""
        self._recitals[recital.document_id] = recital

    def drop_recital(self, document_id: str) -> None:
        """Forget a document whose parts were to be recalled."""
        self._recitals.pop(document_id, None)

    def abandon_recitals(self) -> None:
        """Forget all of them."""
        self._recitals.clear()

    def abandon_encodes(self) -> None:
        """End all encodes without a result."""
        running = [request for encode in self._encodes for request in encode.requests]
        for request in (*running, *self._requests):
            request.abandon()
        self._encodes.clear()
        self._requests.drop(lambda _: True)

    def abandon_questions(self) -> None:
        """End all questions, those being answered included, with an error."""
        running = [question for job in self._answer_jobs for question in job.questions]
        for question in (*running, *self._questions):
            question.cancel()
            question.send(NotReady("stopping", "the service is stopping"))
        self._questions.drop(lambda _: True)

    def next_job(self) -> Job | None:
        """The job to advance by one slice, or None where there is nothing to do."""
        self._forget_ended()
        if self._calls:
            return self._calls.popleft()
        self._fill_rows()
        self._begin_encodes()
        answers = [job for job in self._answer_jobs if not job.done]
        due = self._answer_seconds >= _ANSWER_SHARE * self._slice_seconds
        if self._encodes and (due or not answers):
            self._encodes.rotate(-1)
            return self._encodes[-1]
        if answers:
            self._answer_jobs.remove(answers[0])
            self._answer_jobs.append(answers[0])
            return answers[0]
        return next(iter(self._recitals.values()), None)

    def note(self, job: Job, seconds: float) -> None:
        """Learn how long a slice took."""
        if isinstance(job, AnswerJob):
            self._answer_seconds += seconds
        elif isinstance(job, EncodeJob):
            self._answer_seconds = 0.0
            self._slice_seconds = seconds

    def _forget_ended(self) -> None:
        for answers in list(self._answer_jobs):
            for question in answers.to_retry:
                alone = AnswerJob()
                alone.add(question)
                self._answer_jobs.append(alone)
            answers.to_retry.clear()
            if answers.done and answers is not self._answers:
                self._answer_jobs.remove(answers)
        for encode in list(self._encodes):
            for request in encode.to_retry:
                self._requests.add("", request)
            if encode.done:
                self._encodes.remove(encode)
        recital = next(iter(self._recitals.values()), None)
        if recital is not None and recital.done:
            self.drop_recital(recital.document_id)
        self._questions.drop(lambda question: question.ended())
        self._requests.drop(lambda request: request.future.done())

    def _fill_rows(self) -> None:
        while len(self._answers.questions) < _MAX_ROWS and (question := self._questions.pop()) is not None:
            self._answers.add(question)

    def _begin_encodes(self) -> None:
        if not self._encodes:
            self._begin(self._requests.pop())
        elif len(self._encodes) == 1 and not _is_short(self._encodes[0].requests[0]):
            self._begin(self._requests.pop(_is_short))

    def _begin(self, request: EncodeRequest | None) -> None:
        if request is None:
            return
        together = [request]
        if _may_share(request):
            while len(together) < self.most_together and (other := self._requests.pop(_may_share)) is not None:
                together.append(other)
        self._encodes.append(EncodeJob(together, memory_budget=self._memory_budget))


def _is_short(request: EncodeRequest) -> bool:
    return len(request.text) <= SHORT_CHARACTERS


def _may_share(request: EncodeRequest) -> bool:
    return _is_short(request) and not request.alone
