"""The one thread that owns the model. All others hand it jobs."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from perk.answer import AnswerRequest
from perk.inner_loop import EncodedDocument
from perk.perk_model import PerkModel
from service.engine.answer_job import AnswerJob
from service.engine.jobs import CallJob, EncodeProgress, EncodeRequest, Job, Question
from service.engine.recital_job import RecitalJob
from service.engine.scheduler import Scheduler
from service.errors import NotReady, QueueFull
from service.metrics import Metrics

__all__ = ["ModelThread"]

T = TypeVar("T")

# Of an answer; a guess until one has been measured.
_FIRST_ANSWER_SECONDS = 2.0
# Copies of its adapter that an encode holds at its worst: with its gradient, the moments, and their successors.
_ADAPTER_COPIES = 8


class ModelThread:
    """Runs jobs slice by slice. Its methods may be called from any thread."""

    def __init__(self, *, memory_budget: int, question_limit: int, metrics: Metrics, most_together: int = 1) -> None:
        """Prepare the thread.

        Args:
            memory_budget: bytes for the activations of an encode.
            question_limit: most questions that may wait.
            metrics: where slices are counted.
            most_together: most short documents of one encode.
        """
        self._memory_budget = memory_budget
        self._question_limit = question_limit
        self._metrics = metrics
        self._scheduler = Scheduler(memory_budget=memory_budget, most_together=most_together)
        self._answer_seconds = _FIRST_ANSWER_SECONDS
        self._changed = threading.Condition()
        self._stopping = False
        self._loaded = False
        self._thread: threading.Thread | None = None
        metrics.waiting.labels("question").set_function(self._waiting_questions)
        metrics.waiting_limit.labels("question").set(question_limit)

    async def start(self, load: Callable[[], PerkModel]) -> PerkModel:
        """Load the model on the thread.

        Returns:
            The model, of which other threads may read what never changes: its names and its fingerprint.

        Raises:
            PerkError: as `load` does.
        """
        loaded: Future[PerkModel] = Future()
        self._thread = threading.Thread(target=self._run, args=(load, loaded), name="perk-model", daemon=True)
        self._thread.start()
        return await asyncio.wrap_future(loaded)

    @property
    def alive(self) -> bool:
        """Whether jobs are being run."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    async def call(self, function: Callable[[PerkModel], T]) -> T:
        """Make a short call with the model, between two slices."""
        future: Future[T] = Future()
        with self._accepting():
            self._scheduler.add_call(CallJob(function, future))
        return await asyncio.wrap_future(future)

    async def encode(
        self, texts: Sequence[str], report: Callable[[EncodeProgress], None], *, owner: str = ""
    ) -> list[EncodedDocument]:
        """Encode documents, perhaps together with others; cancelling the caller ends the encode at its next slice.

        Args:
            texts: normalised documents.
            report: called on the model thread after each slice, with the progress of one document.
            owner: owners take turns.

        Raises:
            NotReady: the thread stops before the end.
        """
        requests = [EncodeRequest(text, report) for text in texts]
        with self._accepting():
            for request in requests:
                self._scheduler.add_encode(request, owner)
        return await asyncio.gather(*(asyncio.wrap_future(request.future) for request in requests))

    def ask(self, request: AnswerRequest, *, owner: str = "", deadline: float | None = None) -> Question:
        """Put a question in the queue.

        Args:
            request: the question.
            owner: owners take turns.
            deadline: when it ends, answered or not (`time.monotonic`); None: never.

        Raises:
            QueueFull: too many wait already.
        """
        question = Question(request, asyncio.get_running_loop(), deadline=deadline)
        with self._accepting():
            if self._scheduler.waiting_questions >= self._question_limit:
                raise QueueFull("questions", self._question_limit, math.ceil(self._answer_seconds))
            self._scheduler.add_question(question, owner)
        return question

    def recite(self, document_id: str, adapter: Tensor) -> None:
        """Recall a document's parts from its adapter ``[P]`` once there is nothing else to do, if it is there by then.

        Questions do so themselves; those that come later need not.
        """
        with self._changed:
            if self.alive:
                self._scheduler.add_recital(RecitalJob(document_id, adapter))
                self._changed.notify()

    def drop_recital(self, document_id: str) -> None:
        """Keep nothing of a document for the sake of its parts."""
        with self._changed:
            self._scheduler.drop_recital(document_id)

    async def stop(self, grace: float) -> None:
        """Take no more jobs, end encodes after the running slice, answer the questions that are there, then end.

        Args:
            grace: seconds after which questions that have no whole answer yet end with `NotReady`.
        """
        with self._changed:
            self._stopping = True
            self._scheduler.abandon_encodes()
            self._scheduler.abandon_recitals()
            self._changed.notify()
        # A thread that is still loading cannot be interrupted: as a daemon it ends with the process.
        if self._thread is None or not self._loaded:
            return
        await asyncio.to_thread(self._thread.join, grace)
        if self._thread.is_alive():
            with self._changed:
                self._scheduler.abandon_questions()
            await asyncio.to_thread(self._thread.join)

    @contextmanager
    def _accepting(self) -> Iterator[None]:
        """Adds a job under the lock, and wakes the thread."""
        with self._changed:
            if not self.alive:
                if self._stopping:
                    raise NotReady("stopping", "the service is stopping")
                raise NotReady("failed", "the model is not running")
            yield
            self._changed.notify()

    def _run(self, load: Callable[[], PerkModel], loaded: Future[PerkModel]) -> None:
        if not loaded.set_running_or_notify_cancel():
            return
        try:
            model = load()
        except Exception as error:  # noqa: BLE001 - told to whoever started the thread
            loaded.set_exception(error)
            return
        adapter_bytes = _ADAPTER_COPIES * 4 * model.adapter_size
        self._scheduler.most_together = min(
            self._scheduler.most_together, max(self._memory_budget // (2 * adapter_bytes), 1)
        )
        self._loaded = True
        loaded.set_result(model)
        while (job := self._next_job()) is not None:
            started = time.monotonic()
            job.advance(model)
            ended = time.monotonic()
            self._metrics.slice_seconds.labels(job.kind).observe(ended - started)
            if job.rows:
                self._metrics.batch_rows.labels(job.kind).observe(job.rows)
            with self._changed:
                self._scheduler.note(job, ended - started)
                if isinstance(job, AnswerJob) and job.answer_seconds is not None:
                    self._answer_seconds = job.answer_seconds

    def _next_job(self) -> Job | None:
        """Wait for something to do; None at the end."""
        with self._changed:
            while (job := self._scheduler.next_job()) is None and not self._stopping:
                self._changed.wait()
            return job

    def _waiting_questions(self) -> int:
        with self._changed:
            return self._scheduler.waiting_questions
