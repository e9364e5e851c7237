"""One answer as it comes, with what it cost."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from service.engine.jobs import Question
from service.metrics import Metrics
from service.tracing import Tracer

__all__ = ["AnswerStream", "Timings"]


@dataclass(frozen=True)
class Timings:
    """Milliseconds.

    Attributes:
        adapter_ms: to get the adapter.
        queue_ms: the question waited for the model.
        first_token_ms: from the question's arrival to the first text of the answer, or its end.
        total_ms: from the question's arrival to the end of the answer.
    """

    queue_ms: float
    adapter_ms: float
    first_token_ms: float
    total_ms: float


class AnswerStream:
    """The answer to one question. Close it, however it ends: it then frees its place in the model's batch.

    Attributes:
        id: of the answer.
        document_id: of the document asked; None: the base model.
        finish_reason: ``stop`` or ``length``, once ended.
        support: what was recalled of the document before the answer, once ended.
        timings: once ended.
    """

    def __init__(
        self,
        document_id: str | None,
        question: Question,
        *,
        arrived_at: float,
        asked_at: float,
        spend: Callable[[int], None],
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        """Follow a question that is in the model's queue.

        Args:
            document_id: of the document asked; None: the base model.
            question: in the queue.
            arrived_at: when the request came (`time.monotonic`).
            asked_at: when the adapter was there and the question was put in the queue.
            spend: is told the tokens of prompt and answer, once it has ended.
            metrics: where it is counted.
            tracer: takes its spans, below that of the request that is being answered here.
        """
        self.id = f"ans_{uuid.uuid4().hex}"
        self.document_id = document_id
        self.finish_reason: str | None = None
        self.support = ""
        self.timings: Timings | None = None
        self._question = question
        self._arrived_at = arrived_at
        self._asked_at = asked_at
        self._spend = spend
        self._metrics = metrics
        self._tracer = tracer
        self._origin = tracer.here()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._question.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return self._question.completion_tokens

    def fail(self, error: Exception) -> None:
        """End the answer with an error for whoever reads it."""
        self._question.cancel()
        self._question.send(error)

    def close(self) -> None:
        """Want no more of it."""
        self._question.cancel()

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The text of the answer, piece by piece.

        Raises:
            InvalidInput: the model cannot be asked this.
            ServiceError: the document was deleted.
        """
        outcome = "cancelled"
        first_at: float | None = None
        try:
            while self.finish_reason is None:
                delta = await self._question.next_delta()
                first_at = first_at or time.monotonic()
                if delta.text:
                    yield delta.text
                if delta.finish_reason is not None:
                    self.support = delta.support
                    self._finish(delta.finish_reason, first_at)
                    outcome = "answered"
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._metrics.questions.labels(outcome).inc()
            self._metrics.answered_tokens.inc(self.completion_tokens)
            self._spend(self.prompt_tokens + self.completion_tokens)
            self.close()
            self._trace(outcome)

    def _trace(self, outcome: str) -> None:
        ended_at = time.monotonic()
        attributes: dict[str, str | int] = {
            "perk.document_id": self.document_id or "none",
            "perk.outcome": outcome,
            "perk.prompt_tokens": self.prompt_tokens,
            "perk.completion_tokens": self.completion_tokens,
        }
        whole = self._tracer.add("question", self._arrived_at, ended_at, self._origin, attributes)
        taken_up_at = self._question.started_at or ended_at
        self._tracer.add("adapter", self._arrived_at, self._asked_at, whole, {})
        self._tracer.add("queue", self._asked_at, taken_up_at, whole, {})
        self._tracer.add("decode", taken_up_at, ended_at, whole, {})

    def _finish(self, reason: str, first_at: float) -> None:
        taken_up_at = self._question.started_at or first_at
        self.timings = Timings(
            queue_ms=_milliseconds(taken_up_at - self._asked_at),
            adapter_ms=_milliseconds(self._asked_at - self._arrived_at),
            first_token_ms=_milliseconds(first_at - self._arrived_at),
            total_ms=_milliseconds(time.monotonic() - self._arrived_at),
        )
        self._metrics.wait_seconds.labels("question").observe(taken_up_at - self._asked_at)
        self._metrics.adapter_seconds.observe(self._asked_at - self._arrived_at)
        self._metrics.first_token_seconds.observe(first_at - self._arrived_at)
        self._metrics.ask_seconds.observe(time.monotonic() - self._arrived_at)
        self.finish_reason = reason


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
