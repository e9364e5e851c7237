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
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from perk.answer import AnswerDelta, AnswerRequest
from perk.inner_loop import EncodedDocument, Encoding
from perk.perk_model import PerkModel
from service.errors import NotReady, TookTooLong

__all__ = ["CallJob", "EncodeJob", "EncodeProgress", "EncodeRequest", "Job", "Question"]

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
        steps: inner steps planned so far; a text that is not learned by then takes more.
        segments_done: of each document, in the pass over it that runs.
        loss: of each document, entering the last finished step, in nats per token; empty before it.
    """

    done: float
    step: int
    tokens: tuple[int, ...]
    segments: tuple[int, ...]
    steps: int = 0
    segments_done: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()

    def of(self, index: int) -> EncodeProgress:
        """The part of one document."""
        one = slice(index, index + 1)
        return replace(
            self,
            tokens=self.tokens[one],
            segments=self.segments[one],
            segments_done=self.segments_done[one],
            loss=self.loss[one],
        )


@dataclass(eq=False)
class EncodeRequest:
    """One document to encode.

    Attributes:
        text: normalised.
        report: called on the model thread after each slice.
        future: of the result; cancelling it ends the encode at the next slice, if no other document shares it.
        alone: after an error in an encode of several documents, each is encoded by itself: only the one at fault fails.
    """

    text: str
    report: Callable[[EncodeProgress], None]
    future: Future[EncodedDocument] = field(default_factory=Future)
    alone: bool = False

    def abandon(self) -> None:
        """End it without a result."""
        _fail(self.future, NotReady("stopping", "the service is stopping"))


class EncodeJob:
    """Encodes documents together.

    Attributes:
        requests: the documents.
        to_retry: documents that an error has thrown out; whoever asks takes them away.
    """

    kind = "encode"

    def __init__(self, requests: Sequence[EncodeRequest], *, memory_budget: int) -> None:
        """Prepare the job.

        Args:
            requests: D documents.
            memory_budget: bytes for activations.
        """
        self.requests = list(requests)
        self.to_retry: list[EncodeRequest] = []
        self._memory_budget = memory_budget
        self._encoding: Encoding | None = None

    @property
    def rows(self) -> int:
        """Documents."""
        return len(self.requests)

    @property
    def done(self) -> bool:
        """Whether every document has its result, or no one wants it any more."""
        return all(request.future.done() for request in self.requests)

    def advance(self, model: PerkModel) -> None:
        """Cut the documents into segments at first, then run a slice at a time."""
        try:
            if self._encoding is None:
                self.requests = [request for request in self.requests if not request.future.done()]
                texts = [request.text for request in self.requests]
                self._encoding = model.start_encoding(texts, memory_budget=self._memory_budget)
            else:
                self._encoding.advance()
            progress = _progress(self._encoding)
            for index, request in enumerate(self.requests):
                request.report(progress.of(index))
            if self._encoding.done:
                for request, result in zip(self.requests, self._encoding.results(), strict=True):
                    with suppress(InvalidStateError):  # cancelled meanwhile
                        request.future.set_result(result)
        except Exception as error:  # noqa: BLE001 - these documents', whatever it is
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        for request in self.requests:
            if len(self.requests) > 1:
                request.alone = True
                self.to_retry.append(request)
            else:
                _fail(request.future, error)
        self.requests = []


class Question:
    """One question; its deltas, and the error that ends it, reach the event loop in order.

    Attributes:
        request: what is asked.
        deadline: when it ends, answered or not (`time.monotonic`), or None.
        asked_at: when it was put in the queue (`time.monotonic`).
        started_at: when the model took it up (`time.monotonic`), or None.
        prompt_tokens: known with the first delta.
        completion_tokens: so far.
    """

    def __init__(
        self, request: AnswerRequest, loop: asyncio.AbstractEventLoop, *, deadline: float | None = None
    ) -> None:
        self.request = request
        self.deadline = deadline
        self.asked_at = time.monotonic()
        self.started_at: float | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.sent_text = False
        # After an error in a batch, its questions are asked again one by one: only the one at fault fails.
        self.alone = False
        self.cancelled = False
        self._loop = loop
        self._events: asyncio.Queue[AnswerDelta | Exception] = asyncio.Queue()

    def cancel(self) -> None:
        """Free its place at the next token."""
        self.cancelled = True

    def ended(self) -> bool:
        """Whether it needs no more tokens: it was cancelled, or its deadline has passed, which it is told."""
        if not self.cancelled and self.deadline is not None and time.monotonic() >= self.deadline:
            self.cancel()
            self.send(TookTooLong())
        return self.cancelled

    def send(self, event: AnswerDelta | Exception) -> None:
        """Tell the event loop; called from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next_delta(self) -> AnswerDelta:
        """The next piece of the answer; the last has a finish reason.

        Raises:
            InvalidInput: the model cannot be asked this.
            ServiceError: the document was deleted, its deadline passed, or the service stops.
        """
        event = await self._events.get()
        if isinstance(event, Exception):
            raise event
        return event


def _progress(encoding: Encoding) -> EncodeProgress:
    return EncodeProgress(
        done=encoding.progress,
        step=encoding.step,
        tokens=tuple(encoding.tokens),
        segments=tuple(encoding.segments),
        steps=encoding.steps,
        segments_done=tuple(encoding.segments_done),
        loss=tuple(encoding.loss),
    )


def _fail(future: Future[T], error: Exception) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        future.set_exception(error)
