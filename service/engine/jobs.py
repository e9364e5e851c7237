"""The work that the model thread does, each kind in slices.

Jobs are made on the event loop and advanced on the model thread. What goes wrong in a job is told to whoever waits for
it, and to no one else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from perk.answer import AnswerDelta, Answering, AnswerRequest
from perk.errors import InvalidInput
from perk.inner_loop import EncodedDocument, Encoding
from perk.perk_model import PerkModel
from service.errors import NotReady

__all__ = ["AnswerRound", "CallJob", "EncodeJob", "EncodeProgress", "Job", "Question"]

T = TypeVar("T")


class Job(Protocol):
    """Something that the model thread advances until it is done."""

    @property
    def kind(self) -> str:
        """A word for the metrics."""

    @property
    def rows(self) -> int:
        """Of its batch; 0 where it has none."""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""

    def advance(self, model: PerkModel) -> None:
        """Run one slice; never raises."""


class CallJob:
    """One short call with the model, such as counting tokens, in a single slice."""

    kind = "call"
    rows = 0

    def __init__(self, function: Callable[[PerkModel], T], future: Future[T]) -> None:
        self._function = function
        self._future = future
        self.done = False

    def advance(self, model: PerkModel) -> None:
        """Make the call."""
        self.done = True
        if self._future.cancelled():
            return
        try:
            result = self._function(model)
        except Exception as error:  # noqa: BLE001 - the caller's, whatever it is
            _fail(self._future, error)
        else:
            with suppress(InvalidStateError):  # cancelled meanwhile
                self._future.set_result(result)


@dataclass(frozen=True)
class EncodeProgress:
    """How far an encode is.

    Attributes:
        done: share of its slices, 0 to 1.
        step: inner steps finished.
        tokens: of each document.
        segments: of each document.
    """

    done: float
    step: int
    tokens: tuple[int, ...]
    segments: tuple[int, ...]


class EncodeJob:
    """Encodes documents together; cancelling the future ends it at the next slice."""

    kind = "encode"

    def __init__(
        self,
        texts: Sequence[str],
        *,
        memory_budget: int,
        report: Callable[[EncodeProgress], None],
        future: Future[list[EncodedDocument]],
    ) -> None:
        """Prepare the job.

        Args:
            texts: D normalised documents.
            memory_budget: bytes for activations.
            report: called on the model thread after each slice.
            future: of one result a document.
        """
        self._texts = texts
        self._memory_budget = memory_budget
        self._report = report
        self._future = future
        self._encoding: Encoding | None = None

    @property
    def rows(self) -> int:
        """Documents."""
        return len(self._texts)

    @property
    def done(self) -> bool:
        """Whether the future has its result, or no one wants it any more."""
        return self._future.done()

    def abandon(self) -> None:
        """End it without a result."""
        _fail(self._future, NotReady("stopping", "the service is stopping"))

    def advance(self, model: PerkModel) -> None:
        """Cut the documents into segments at first, then run a slice at a time."""
        try:
            if self._encoding is None:
                self._encoding = model.start_encoding(self._texts, memory_budget=self._memory_budget)
            else:
                self._encoding.advance()
            self._report(_progress(self._encoding))
            if self._encoding.done:
                with suppress(InvalidStateError):  # cancelled meanwhile
                    self._future.set_result(self._encoding.results())
        except Exception as error:  # noqa: BLE001 - this document's, whatever it is
            _fail(self._future, error)


class Question:
    """One question; its deltas, and the error that ends it, reach the event loop in order.

    Attributes:
        request: what is asked.
        started_at: when the model took it up (`time.monotonic`), or None.
        prompt_tokens: known with the first delta.
        completion_tokens: so far.
    """

    def __init__(self, request: AnswerRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.started_at: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.sent_text = False
        # After an error in a round, its questions are asked again one by one: only the one at fault fails.
        self.alone = False
        self.cancelled = False
        self._loop = loop
        self._events: asyncio.Queue[AnswerDelta | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Free its place at the next token."""
        self.cancelled = True

    def send(self, event: AnswerDelta | Exception) -> None:
        """Tell the event loop; called from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next_delta(self) -> AnswerDelta:
        """The next piece of the answer; the last has a finish reason.

        Raises:
            InvalidInput: the model cannot be asked this.
            ServiceError: the document was deleted, or the service stops.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


class AnswerRound:
    """Some questions answered as one batch, one token a slice.

    Attributes:
        created_at: when it began (`time.monotonic`).
        done: whether it has ended.
        to_retry: questions that an error has thrown out of it before they had any answer.
    """

    kind = "answer"

    def __init__(self, questions: Sequence[Question]) -> None:
        """Prepare the round.

        Args:
            questions: the rows of the batch.
        """
        self.created_at = time.monotonic()
        self._rows = list(questions)
        self._answering: Answering | None = None
        self.done = False
        self.to_retry: list[Question] = []

    @property
    def rows(self) -> int:
        """Questions."""
        return len(self._rows)

    @property
    def questions(self) -> Sequence[Question]:
        """The rows of the batch."""
        return self._rows

    def advance(self, model: PerkModel) -> None:
        """One token for each question that still needs one."""
        try:
            if self._answering is None:
                self._answering = self._start(model)
            if self._answering is not None:
                self._advance(self._answering)
        except Exception as error:  # noqa: BLE001 - these questions', whatever it is
            self._fail(error)

    def _start(self, model: PerkModel) -> Answering | None:
        self._rows = [question for question in self._rows if not question.cancelled]
        try:
            answering = self._start_rows(model)
        except InvalidInput:
            self._rows = [question for question in self._rows if _is_valid(model, question)]
            answering = self._start_rows(model)
        now = time.monotonic()
        for question in self._rows:
            question.started_at = now
        return answering

    def _start_rows(self, model: PerkModel) -> Answering | None:
        if not self._rows:
            self.done = True
            return None
        return model.start_answer([question.request for question in self._rows])

    def _advance(self, answering: Answering) -> None:
        for row, question in enumerate(self._rows):
            if question.cancelled:
                answering.cancel(row)
        if not answering.done:
            deltas = answering.advance()
            for row, question in enumerate(self._rows):
                question.prompt_tokens = answering.prompt_tokens[row]
                question.completion_tokens = answering.completion_tokens[row]
            for delta in deltas:
                question = self._rows[delta.row]
                question.sent_text = True
                question.send(delta)
        self.done = answering.done

    def _fail(self, error: Exception) -> None:
        self.done = True
        for question in self._rows:
            if len(self._rows) > 1 and not question.sent_text:
                question.alone = True
                self.to_retry.append(question)
            else:
                question.send(error)


def _is_valid(model: PerkModel, question: Question) -> bool:
    """Whether the model can be asked this; if not, the question fails."""
    try:
        model.start_answer([question.request])
    except InvalidInput as error:
        question.send(error)
        return False
    return True


def _progress(encoding: Encoding) -> EncodeProgress:
    return EncodeProgress(encoding.progress, encoding.step, tuple(encoding.tokens), tuple(encoding.segments))


def _fail(future: Future[T], error: Exception) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error)
