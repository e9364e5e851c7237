"""Documents that wait for their adapter, and the one that is being encoded."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

import structlog

from perk.errors import PerkError
from perk.inner_loop import EncodedDocument
from service.engine.flight import Flight
from service.engine.jobs import EncodeProgress
from service.engine.model_thread import ModelThread
from service.errors import DamagedText, LeaseLost, NotReady, QueueFull, StorageFull, StoreError
from service.logging import describe_error
from service.metrics import Metrics
from service.store.protocol import AdapterTier, DocumentStore, Leases, Readiness
from service.store.record import EncodeSummary

__all__ = ["EncodeQueue"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

# Before an encode has been measured.
_FIRST_ENCODE_SECONDS = 10.0
# Between two attempts to write to a store that cannot be written.
STORE_PAUSE_SECONDS = 2.0
# What a client is told to wait lies within these.
_RETRY_AFTER_SECONDS = (1, 600)


class EncodeQueue:
    """Encodes documents one by one, the oldest first, and keeps their adapters. One event loop owns it.

    Only ids wait here; texts wait in the store.
    """

    def __init__(
        self,
        *,
        thread: ModelThread,
        documents: DocumentStore,
        adapters: AdapterTier,
        leases: Leases,
        limit: int,
        adapter_ttl: int | None,
        metrics: Metrics,
    ) -> None:
        """Prepare an empty queue.

        Args:
            thread: runs the encodes.
            documents: has the texts, and learns how each encode went.
            adapters: keeps the results.
            leases: tell which documents other replicas encode.
            limit: most documents that may wait.
            adapter_ttl: seconds an adapter is kept; None: for ever.
            metrics: where encodes are counted.
        """
        self._thread = thread
        self._documents = documents
        self._adapters = adapters
        self._leases = leases
        self._limit = limit
        self._adapter_ttl = adapter_ttl
        self._metrics = metrics
        self._flights: dict[str, Flight] = {}
        self._waiting: deque[Flight] = deque()
        # Other replicas encode these: they take no place here, until `settle` or `take_back`.
        self._elsewhere: dict[str, Flight] = {}
        self._current: Flight | None = None
        self._promised = 0
        self._arrived = asyncio.Event()
        self._mean_seconds = _FIRST_ENCODE_SECONDS
        self.closed = False
        """Whether `run` has ended: documents wait in the store for the next start."""
        self.store_problem: str | None = None
        """Why the store cannot be used just now; None while it can."""
        metrics.waiting.labels("encode").set_function(lambda: len(self._waiting))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a document that is about to be stored.

        Raises:
            QueueFull: there is none.
        """
        if len(self._waiting) + self._promised >= self._limit:
            raise QueueFull("documents", self._limit, _bounded(self._mean_seconds))
        self._promised += 1
        try:
            yield
        finally:
            self._promised -= 1

    def add(self, document_id: str, *, again: bool = False) -> Flight:
        """Queue a stored document, unless it is on its way already; once the queue is closed, the flight has ended.

        Args:
            document_id: of the document.
            again: its adapter is gone and a question waits for it: it goes first.
        """
        flight = self._flights.get(document_id)
        if flight is None:
            flight = Flight(document_id, again=again)
            if self.closed:
                flight.end()
                return flight
            self._flights[document_id] = flight
            if again:
                self._waiting.appendleft(flight)
            else:
                self._waiting.append(flight)
            self._arrived.set()
        flight.again = flight.again or again
        return flight

    def find(self, document_id: str) -> Flight | None:
        """The flight that a document is on."""
        return self._flights.get(document_id)

    @property
    def running(self) -> int:
        """Documents whose encode has begun, here or elsewhere."""
        return sum(flight.progress is not None for flight in self._flights.values())

    @property
    def not_here(self) -> set[str]:
        """Documents that wait, or that other replicas encode."""
        return {flight.document_id for flight in self._waiting}.union(self._elsewhere)

    @property
    def elsewhere(self) -> set[str]:
        """Documents that other replicas encode."""
        return set(self._elsewhere)

    def follow(self, document_id: str, progress: EncodeProgress) -> None:
        """Another replica encodes the document and is that far."""
        flight = self._flights.get(document_id)
        if flight is not None and self._put_aside(flight):
            flight.update(progress)

    def settle(self, document_id: str) -> None:
        """Another replica's encode of the document has ended: the store knows how it went."""
        flight = self._flights.get(document_id)
        if flight is not None and self._put_aside(flight):
            del self._elsewhere[document_id]
            self._end(flight)

    def take_back(self, document_id: str) -> None:
        """The replica that encoded the document does so no more: it is anyone's again, and goes first."""
        flight = self._elsewhere.pop(document_id, None)
        if flight is not None:
            flight.progress = None
            self._waiting.appendleft(flight)
            self._arrived.set()

    def _put_aside(self, flight: Flight) -> bool:
        """Whether another replica may have the flight; then it waits no more."""
        if flight in self._waiting:
            self._waiting.remove(flight)
            self._elsewhere[flight.document_id] = flight
        return flight.document_id in self._elsewhere

    def retry_after(self, document_id: str) -> int:
        """Seconds after which a document that waits or is being encoded is likely to be ready."""
        seconds = 0.0
        if self._current is not None:
            left = self._current.seconds_left
            seconds = self._mean_seconds if left is None else left
        for position, flight in enumerate(self._waiting, start=1):
            if flight.document_id == document_id:
                seconds += position * self._mean_seconds
        return _bounded(seconds)

    def cancel(self, document_id: str) -> None:
        """Let go of a document that is being deleted; an encode that runs ends with its slice."""
        flight = self._flights.get(document_id)
        if flight is None:
            return
        if flight.task is None:
            self._put_aside(flight)
            self._elsewhere.pop(document_id, None)
        else:
            flight.task.cancel()
        self._end(flight)

    async def run(self) -> None:
        """Encode whatever is queued, until cancelled. Documents that are not done stay queued in the store."""
        try:
            while True:
                while not self._waiting:
                    self._arrived.clear()
                    await self._arrived.wait()
                self._current = self._waiting.popleft()
                self._current.task = asyncio.create_task(self._fly(self._current))
                await asyncio.wait({self._current.task})
                self._current = None
        finally:
            self.closed = True
            if self._current is not None and self._current.task is not None:
                self._current.task.cancel()
                await asyncio.wait({self._current.task})
            for flight in list(self._flights.values()):
                self._end(flight)

    async def _fly(self, flight: Flight) -> None:
        """Encode one document, unless another replica does."""
        structlog.contextvars.bind_contextvars(document_id=flight.document_id)
        claim = await self._persist(lambda: self._leases.take(flight.document_id, lambda: _lose(flight)))
        if claim == "elsewhere":
            flight.task = None
            self._elsewhere[flight.document_id] = flight
        elif claim == "over":
            self._end(flight)
        else:
            await self._encode_and_keep(flight)

    async def _encode_and_keep(self, flight: Flight) -> None:
        """Encode one document, and let the store know how it went."""
        started = time.monotonic()
        outcome = "cancelled"
        try:
            encoded = await self._encode(flight)
            if encoded is not None:
                await self._keep(flight.document_id, encoded)
                self._mean_seconds += 0.3 * (time.monotonic() - started - self._mean_seconds)
                outcome = "ready"
        except asyncio.CancelledError:
            outcome = "handed back" if self.closed or flight.lost else "cancelled"
            raise
        except (NotReady, LeaseLost):
            outcome = "handed back"
        except Exception as error:  # noqa: BLE001 - this document's, whatever it is
            outcome = "failed"
            await self._fail(flight.document_id, error)
        finally:
            # First of all: whatever else goes wrong here, no one waits for ever.
            self._end(flight)
            self._metrics.encodes.labels(outcome).inc()
            _log.info("encode ended", outcome=outcome, seconds=round(time.monotonic() - started, 3))
            await self._leases.release(flight.document_id)

    async def _encode(self, flight: Flight) -> EncodedDocument | None:
        """None where the document has been deleted."""
        text = await self._persist(lambda: self._documents.text(flight.document_id))
        if text is None:
            return None
        found = await self._thread.call(lambda model: model.document_id(text))
        if found != flight.document_id:
            raise DamagedText(flight.document_id)
        loop = asyncio.get_running_loop()

        def report(progress: EncodeProgress) -> None:
            loop.call_soon_threadsafe(self._tell, flight, progress)

        (encoded,) = await self._thread.encode([text], report)
        return encoded

    def _tell(self, flight: Flight, progress: EncodeProgress) -> None:
        flight.update(progress)
        self._leases.tell(flight.document_id, asdict(progress))

    async def _keep(self, document_id: str, encoded: EncodedDocument) -> None:
        await self._persist(lambda: self._adapters.put(document_id, encoded.adapter))
        now = time.time()
        readiness = Readiness(
            tokens=encoded.tokens,
            segments=encoded.segments,
            ready_at=now,
            expires_at=None if self._adapter_ttl is None else now + self._adapter_ttl,
            encode=EncodeSummary(encoded.seconds, encoded.steps, encoded.loss_before, encoded.loss_after),
        )
        await self._persist(lambda: self._documents.mark_ready(document_id, readiness))
        self._metrics.encode_seconds.observe(encoded.seconds)
        self._metrics.encoded_tokens.inc(encoded.tokens)
        self._metrics.loss_before.observe(encoded.loss_before)
        self._metrics.loss_after.observe(encoded.loss_after)

    async def _fail(self, document_id: str, error: Exception) -> None:
        told = isinstance(error, PerkError | DamagedText)
        reason = str(error) if told else f"internal error: {type(error).__name__}"
        _log.error("encode failed", **describe_error(error))
        await self._persist(lambda: self._documents.mark_failed(document_id, reason))

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Use the store, again and again while it fails: nothing that has been computed is lost to a full disk."""
        while True:
            try:
                result = await operation()
            except DamagedText:
                raise
            except StoreError as error:
                self.store_problem = str(error)
                self._metrics.store_errors.labels("full" if isinstance(error, StorageFull) else "other").inc()
                _log.error("store unavailable", problem=str(error))
                await asyncio.sleep(STORE_PAUSE_SECONDS)
            else:
                self.store_problem = None
                return result

    def _end(self, flight: Flight) -> None:
        # Deleted and sent again meanwhile, the document may be on another flight.
        if self._flights.get(flight.document_id) is flight:
            del self._flights[flight.document_id]
        flight.end()


def _lose(flight: Flight) -> None:
    flight.lost = True
    if flight.task is not None:
        flight.task.cancel()


def _bounded(seconds: float) -> int:
    shortest, longest = _RETRY_AFTER_SECONDS
    return min(max(math.ceil(seconds), shortest), longest)
