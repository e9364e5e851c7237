"""The replicas with a model: those that encode, and those that answer."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from prometheus_client import generate_latest
from ray import serve

from deploy.ray.wire import Accepted, Event, Failed, Piece
from perk.answer import AnswerRequest
from perk.errors import PerkError
from service.engine.engine import Engine, EngineParts, load_perk_model
from service.errors import NotReady, ServiceError
from service.logging import configure_logs
from service.metrics import Metrics
from service.settings import load_settings
from service.store.alone import NoOtherReplica
from service.store.protocol import Claim
from service.tracing import open_tracer

__all__ = ["Answerer", "Encoder"]


class _Replica:
    """An engine in a process of its own, with the settings of its environment."""

    def __init__(self, replaced: EngineParts) -> None:
        configure_logs()
        # Nothing is ever added here: the outbox of documents that Redis cannot take is the front's.
        self._scratch = tempfile.TemporaryDirectory(prefix="perk-ray-")
        settings = load_settings().model_copy(update={"data_dir": Path(self._scratch.name)})
        self._engine = Engine(settings, load_perk_model, Metrics(), open_tracer(), replaced)

    async def _start(self) -> None:
        self._engine.start()
        await self._engine.ready()

    def check_health(self) -> None:
        """Ray's question: whether to replace this replica. One whose store is away must not be.

        Raises:
            NotReady: the model does not run any more.
        """
        try:
            self._engine.require_ready()
        except NotReady as problem:
            if problem.reason == "failed":
                raise

    async def metrics(self) -> tuple[str, str]:
        """The name of this replica, and its metrics as Prometheus' text."""
        name: str = serve.get_replica_context().replica_tag
        return name, generate_latest(self._engine.metrics.registry).decode()

    async def process_id(self) -> int:
        """Number of this process on its machine."""
        return os.getpid()

    async def stop(self) -> None:
        """End what runs; what is not done goes back to the store."""
        await self._engine.stop()
        self._scratch.cleanup()


class Encoder(_Replica):
    """Encodes whatever waits in the store, together with all others of its kind."""

    async def __init__(self) -> None:  # type: ignore[misc] # Ray awaits it
        super().__init__(EngineParts(recites=False))
        await self._start()

    async def fingerprint(self) -> str:
        """Of all that determines an adapter besides the text."""
        return self._engine.documents.fingerprint

    async def encode(self, document_id: str) -> None:
        """Return once the encode of a stored document has ended, whichever encoder has it.

        Encoders find their work in the store; these calls tell Ray how much of it there is.
        """
        await self._engine.until_encoded(document_id)


class Answerer(_Replica):
    """Answers questions, and encodes nothing."""

    async def __init__(self) -> None:  # type: ignore[misc] # Ray awaits it
        super().__init__(EngineParts(leases=lambda _: _NothingHere()))
        await self._start()

    async def at_hand(self, document_id: str) -> str:
        """Let Ray know that the adapter of a document is in this replica's memory; decorated where it is deployed."""
        return document_id

    async def ask(
        self, document_id: str | None, request: AnswerRequest, owner: str, seconds: float
    ) -> AsyncGenerator[Event, None]:
        """Answer a question.

        Args:
            document_id: of the document; None asks the base model alone.
            request: the question, without an adapter.
            owner: of the document.
            seconds: after which it ends, answered or not.
        """
        try:
            question = await self._engine.questions.put(
                document_id, request, owner, deadline=time.monotonic() + seconds
            )
        except (PerkError, ServiceError) as error:
            yield Failed.of(error)
            return
        try:
            if document_id is not None:
                await self.at_hand(document_id)
            yield Accepted()
            reason = None
            while reason is None:
                delta = await question.next_delta()
                reason = delta.finish_reason
                waited = (question.started_at or question.asked_at) - question.asked_at
                yield Piece(delta, question.prompt_tokens, question.completion_tokens, waited)
        except (PerkError, ServiceError) as error:
            yield Failed.of(error)
        finally:
            question.cancel()


class _NothingHere(NoOtherReplica):
    """`Leases` of a replica that encodes nothing: whatever waits, another has it."""

    async def take(self, document_id: str, on_lost: Callable[[], None]) -> Claim:  # noqa: ARG002 - of the protocol
        """As `Leases.take`."""
        return "elsewhere"
