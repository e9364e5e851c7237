"""Asks the model about documents."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, replace
from functools import partial

from perk.answer import AnswerRequest
from service.engine.answer_stream import AnswerStream
from service.engine.documents import Documents
from service.engine.jobs import Question
from service.engine.model_thread import ModelThread
from service.engine.quotas import Quotas
from service.errors import DocumentNotFound
from service.keys import Tenant
from service.metrics import Metrics
from service.tracing import Tracer

__all__ = ["AnswerOptions", "Questions"]

# Below, sampling takes the likeliest token anyway, and dividing by it leaves the range of float32.
_LEAST_TEMPERATURE = 1e-3


@dataclass(frozen=True)
class AnswerOptions:
    """How to decode an answer; as in `AnswerRequest`."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]


class Questions:
    """Questions of all documents. One event loop owns it."""

    def __init__(
        self,
        *,
        thread: ModelThread,
        documents: Documents,
        quotas: Quotas,
        deadline_seconds: float,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        """Put the parts together.

        Args:
            thread: runs the model.
            documents: have the adapters.
            quotas: what each tenant has used.
            deadline_seconds: from a question's arrival to the end of its answer, at most.
            metrics: where questions are counted.
            tracer: takes their spans.
        """
        self._thread = thread
        self._documents = documents
        self._quotas = quotas
        self._deadline_seconds = deadline_seconds
        self._metrics = metrics
        self._tracer = tracer
        self._open: weakref.WeakSet[AnswerStream] = weakref.WeakSet()

    async def ask(self, document_id: str | None, question: str, options: AnswerOptions, tenant: Tenant) -> AnswerStream:
        """Put a question in the queue, with the adapter of its document; tenants take turns.

        Args:
            document_id: of the document; None asks the base model alone.
            question: of a user.
            options: how to decode the answer.
            tenant: who asks, and owns the document.

        Raises:
            TokensSpent: the tenant has no tokens left.
            InvalidInput: it cannot be asked.
            ServiceError: as `Documents.adapter`.
            QueueFull: too many questions wait.
        """
        arrived_at = time.monotonic()
        # A bad question is told at once, not when the document is ready.
        request = AnswerRequest(
            question=question,
            max_tokens=options.max_tokens,
            temperature=options.temperature if options.temperature >= _LEAST_TEMPERATURE else 0.0,
            top_p=options.top_p,
            seed=options.seed,
            stop=options.stop,
        )
        self._quotas.require_tokens(tenant)
        queued = await self.put(document_id, request, tenant.owner, deadline=arrived_at + self._deadline_seconds)
        stream = AnswerStream(
            document_id,
            queued,
            arrived_at=arrived_at,
            asked_at=queued.asked_at,
            spend=partial(self._quotas.spend, tenant),
            metrics=self._metrics,
            tracer=self._tracer,
        )
        self._open.add(stream)
        return stream

    async def put(self, document_id: str | None, request: AnswerRequest, owner: str, *, deadline: float) -> Question:
        """Put a question in the model's queue, once the adapter of its document is there.

        Args:
            document_id: of the document; None asks the base model alone.
            request: the question, without an adapter.
            owner: of the document; owners take turns.
            deadline: when it ends, answered or not (`time.monotonic`).

        Raises:
            ServiceError: as `Documents.adapter`.
            QueueFull: too many questions wait.
        """
        adapter = None if document_id is None else await self._documents.adapter(document_id, owner)
        return self._thread.ask(replace(request, adapter=adapter), owner=owner, deadline=deadline)

    def end_all(self, document_id: str) -> None:
        """End the answers from a document that has been deleted, and what is recalled for those to come."""
        self._thread.drop_recital(document_id)
        for stream in list(self._open):
            if stream.document_id == document_id:
                stream.fail(DocumentNotFound(document_id))
