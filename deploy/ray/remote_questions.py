"""Questions that replicas elsewhere answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from typing import Any

import structlog
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from deploy.ray.wire import Accepted, Failed, Piece
from perk.answer import AnswerRequest
from service.engine.jobs import Question
from service.engine.questions import Questions
from service.errors import NotReady, QueueFull, ServiceError, TookTooLong
from service.logging import describe_error

__all__ = ["RemoteQuestions"]

_log = structlog.get_logger(__name__)

# Replicas that a question may lose before it is given up: one that ends them all must not have them all.
_MOST_ATTEMPTS = 4
# For the answerer, which keeps the deadline itself, to say so.
_LAST_SECONDS = 5.0
_RETRY_SECONDS = 2


class RemoteQuestions(Questions):
    """`Questions` whose adapters and model are in the answerers."""

    def __init__(self, *, answerers: Any, queue_limit: int, **parts: Any) -> None:
        """Put the parts together.

        Args:
            answerers: handle of their deployment.
            queue_limit: most questions that may wait for one of them.
            parts: as for `Questions`.
        """
        super().__init__(**parts)
        self._answerers = answerers
        self._queue_limit = queue_limit

    async def put(self, document_id: str | None, request: AnswerRequest, owner: str, *, deadline: float) -> Question:
        """As `Questions.put`; the question goes to an answerer that has the adapter, if it is not too busy."""
        if request.temperature > 0 and request.seed is None:
            # Should its answerer be lost, another must draw the same.
            request = replace(request, seed=secrets.randbits(31))
        question = _RemoteQuestion(request, asyncio.get_running_loop(), deadline=deadline)
        question.following = asyncio.create_task(self._follow(question, document_id, owner))
        try:
            await question.accepted
        except BaseException:
            question.cancel()
            raise
        return question

    async def _follow(self, question: _RemoteQuestion, document_id: str | None, owner: str) -> None:
        assert question.deadline is not None
        try:
            async with asyncio.timeout(question.deadline - time.monotonic() + _LAST_SECONDS):
                for _ in range(_MOST_ATTEMPTS):
                    try:
                        await self._attempt(question, document_id, owner)
                    except RayActorError as error:
                        _log.warning("answerer lost", document_id=document_id, error=type(error).__name__)
                    else:
                        return
            question.end(NotReady("failed", "one answerer after the other was lost with this question"))
        except TimeoutError:
            question.end(TookTooLong())
        except BackPressureError:
            question.end(QueueFull("questions", self._queue_limit, _RETRY_SECONDS))
        except ServiceError as error:
            question.end(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, no one must wait for ever
            _log.error("question failed", **describe_error(error))
            question.end(error)

    async def _attempt(self, question: _RemoteQuestion, document_id: str | None, owner: str) -> None:
        assert question.deadline is not None
        handle = self._answerers.options(stream=True, multiplexed_model_id=document_id or "")
        events = handle.ask.remote(document_id, question.request, owner, question.deadline - time.monotonic())
        text = ""
        try:
            async for event in events:
                match event:
                    case Accepted():
                        question.accept()
                    case Failed():
                        question.end(event.error)
                    case Piece():
                        text += event.delta.text
                        question.take(event, text)
        finally:
            # Without effect where it has ended.
            events.cancel()


class _RemoteQuestion(Question):
    """A question that an answerer has.

    Attributes:
        accepted: done once it waits for the model, or failed.
        following: listens to the answerer.
    """

    def __init__(self, request: AnswerRequest, loop: asyncio.AbstractEventLoop, *, deadline: float) -> None:
        super().__init__(request, loop, deadline=deadline)
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.following: asyncio.Task[None] | None = None
        self._told = ""

    def cancel(self) -> None:
        """Free its place."""
        super().cancel()
        if self.following is not None:
            self.following.cancel()

    def accept(self) -> None:
        """It waits for the model, perhaps another one than before."""
        self.asked_at = time.monotonic()
        if not self.accepted.done():
            self.accepted.set_result(None)

    def end(self, error: Exception) -> None:
        """Tell whoever waits that there is no more to come."""
        if self.accepted.done():
            self.send(error)
        else:
            self.accepted.set_exception(error)

    def take(self, piece: Piece, text: str) -> None:
        """Tell what is new of the answer.

        Args:
            piece: from an answerer.
            text: of the answer so far; where an answerer was lost, its client has had some of it already.

        Raises:
            NotReady: it is another answer than the one that was begun.
        """
        self.started_at = self.started_at or self.asked_at + piece.waited_seconds
        self.prompt_tokens, self.completion_tokens = piece.prompt_tokens, piece.completion_tokens
        common = min(len(text), len(self._told))
        if text[:common] != self._told[:common]:
            raise NotReady("failed", "an answerer was lost, and another began otherwise; ask again")
        fresh = text[len(self._told) :]
        self._told += fresh
        if fresh or piece.delta.finish_reason is not None:
            self.send(replace(piece.delta, text=fresh))
