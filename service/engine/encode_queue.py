"""Documents that wait for their adapter, and those that are being encoded."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TypeVar

import structlog

from perk.errors import PerkError
from perk.inner_loop import EncodedDocument
from service.engine.flight import Flight
from service.engine.jobs import EncodeProgress
from service.engine.model_thread import ModelThread
from service.engine.waiting_line import WaitingLine
from service.errors import DamagedText, LeaseLost, NotReady, QueueFull, StorageFull, StoreError
from service.logging import describe_error
from service.metrics import Metrics, tokens_label
from service.store.protocol import AdapterTier, DocumentStore, Leases, Readiness
from service.store.record import DocumentRecord, EncodeSummary
from service.tracing import Tracer

__all__ = ["EncodeQueue"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

# Before an encode has been measured.
_FIRST_ENCODE_SECONDS = 10.0
# Between two attempts to write to a store that cannot be written.
STORE_PAUSE_SECONDS = 2.0
# Encoded documents whose adapters wait for the store: they hold memory.
_MOST_UNKEPT = 8
# What a client is told to wait lies within these.
_RETRY_AFTER_SECONDS = (1, 600)


class EncodeQueue:
    """Hands documents to the model thread, owner by owner, and keeps their adapters. One event loop owns it.

    A document is leased only once the model is free for it: whatever waits, another replica may take. Only ids wait
    here; texts wait in the store.
    """

    def __init__(
        self,
        *,
        thread: ModelThread,
        documents: DocumentStore,
        adapters: AdapterTier,
        leases: Leases,
        limit: int,
        together: int,
        adapter_ttl: int | None,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        """Prepare an empty queue.

        Args:
            thread: runs the encodes.
            documents: has the texts, and learns how each encode went.
            adapters: keeps the results.
            leases: tell which documents other replicas encode.
            limit: most documents that may wait.
            together: most short documents of one encode.
            adapter_ttl: seconds an adapter is kept; None: for ever.
            metrics: where encodes are counted.
            tracer: takes their spans.
        """
        self._thread = thread
        self._documents = documents
        self._adapters = adapters
        self._leases = leases
        self._limit = limit
        # While the first of them is encoded alone, the others come together.
        self._places = 2 * together - 1
        self._adapter_ttl = adapter_ttl
        self._metrics = metrics
        self._tracer = tracer
        self._flights: dict[str, Flight] = {}
        self._waiting = WaitingLine()
        self._flying: list[Flight] = []
        # Of those, the ones that the model is not done with.
        self._at_model: list[Flight] = []
        # Other replicas encode these: they take no place here, until `settle` or `take_back`.
        self._elsewhere: dict[str, Flight] = {}
        self._promised = 0
        self._arrived = asyncio.Event()
        self._mean_seconds = _FIRST_ENCODE_SECONDS
        self._last_ready_at = 0.0
        self.closed = False
        """Whether `run` has ended: documents wait in the store for the next start."""
        self.store_problem: str | None = None
        """Why the store cannot be used just now; None while it can."""
        metrics.waiting.labels("encode").set_function(lambda: len(self._not_begun))
        metrics.waiting_limit.labels("encode").set(limit)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for a document that is about to be stored.

        Raises:
            QueueFull: there is none.
        """
        if len(self._not_begun) + self._promised >= self._limit:
            raise QueueFull("documents", self._limit, _bounded(self._mean_seconds))
        self._promised += 1
        try:
            yield
        finally:
            self._promised -= 1

    def add(self, record: DocumentRecord, *, again: bool = False) -> Flight:
        """Queue a stored document, unless it is on its way already; once the queue is closed, the flight has ended.

        Args:
            record: of the document.
            again: its adapter is gone and a question waits for it: it goes first.
        """
        flight = self._flights.get(record.id)
        if flight is None:
            request_id = structlog.contextvars.get_contextvars().get("request_id")
            flight = Flight(record, again=again, origin=self._tracer.here(), request_id=request_id)
            if self.closed:
                flight.end()
                return flight
            self._flights[record.id] = flight
            self._waiting.add(flight, first=again)
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
    def _not_begun(self) -> list[Flight]:
        """Those that wait, here or for the model thread."""
        return [*(flight for flight in self._flying if flight.progress is None), *self._waiting]

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
            self._waiting.add(flight, first=True)
            self._arrived.set()

    def _put_aside(self, flight: Flight) -> bool:
        """Whether another replica may have the flight; then it waits no more."""
        if self._waiting.remove(flight):
            self._elsewhere[flight.document_id] = flight
        return flight.document_id in self._elsewhere

    def retry_after(self, document_id: str) -> int:
        """Seconds after which a document that waits or is being encoded is likely to be ready."""
        own = self._flights.get(document_id)
        if own is not None and own.seconds_left is not None:
            return _bounded(own.seconds_left)
        left = [flight.seconds_left for flight in self._flying if flight.progress is not None]
        seconds = min((self._mean_seconds if one is None else one for one in left), default=0.0)
        for position, flight in enumerate(self._not_begun, start=1):
            if flight is own:
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
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._arrived.clear()
                while (flight := self._next()) is not None:
                    self._flying.append(flight)
                    self._at_model.append(flight)
                    flight.task = asyncio.create_task(self._fly(flight))
                    tasks.add(flight.task)
                    flight.task.add_done_callback(tasks.discard)
                    flight.task.add_done_callback(partial(self._land, flight))
                await self._arrived.wait()
        finally:
            self.closed = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for flight in list(self._flights.values()):
                self._end(flight)

    def _next(self) -> Flight | None:
        """Takes the next flight for which the model is free out of the line."""
        if len(self._flying) - len(self._at_model) >= _MOST_UNKEPT:
            return None
        short = sum(flight.is_short for flight in self._at_model)
        if short >= self._places:
            return None
        has_long = len(self._at_model) > short
        return self._waiting.pop(lambda flight: flight.is_short or not has_long)

    def _leave_model(self, flight: Flight) -> None:
        if flight in self._at_model:
            self._at_model.remove(flight)
            self._arrived.set()

    def _land(self, flight: Flight, _: asyncio.Task[None]) -> None:
        self._leave_model(flight)
        self._flying.remove(flight)
        self._arrived.set()

    async def _fly(self, flight: Flight) -> None:
        """Encode one document, unless another replica does."""
        structlog.contextvars.bind_contextvars(document_id=flight.document_id)
        if flight.request_id is not None:
            structlog.contextvars.bind_contextvars(request_id=flight.request_id)
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
            self._leave_model(flight)
            if encoded is not None:
                await self._keep(flight.document_id, encoded)
                now = time.monotonic()
                self._metrics.ready_seconds.labels(tokens_label(encoded.tokens)).observe(now - flight.created_at)
                # Of a queue that is busy: several documents are on their way at once.
                self._mean_seconds += 0.3 * (now - max(started, self._last_ready_at) - self._mean_seconds)
                self._last_ready_at = now
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
            ended = time.monotonic()
            attributes = {"perk.document_id": flight.document_id, "perk.outcome": outcome}
            self._tracer.add("encode", started, ended, flight.origin, attributes)
            _log.info("encode ended", outcome=outcome, seconds=round(ended - started, 3))
            await self._leases.release(flight.document_id)

    async def _encode(self, flight: Flight) -> EncodedDocument | None:
        """None where the document has been deleted, or encoded meanwhile."""
        text = await self._persist(lambda: self._documents.text(flight.document_id))
        record = await self._persist(lambda: self._documents.find(flight.document_id))
        if text is None or record is None or record.status != "queued":
            return None
        found = await self._thread.call(lambda model: model.document_id(text))
        if found != (record.text_id or record.id):
            raise DamagedText(flight.document_id)
        loop = asyncio.get_running_loop()

        def update(progress: EncodeProgress) -> None:
            if flight.progress is None:
                self._metrics.wait_seconds.labels("encode").observe(time.monotonic() - flight.created_at)
            self._tell(flight, progress)

        def report(progress: EncodeProgress) -> None:
            loop.call_soon_threadsafe(update, progress)

        (encoded,) = await self._thread.encode([text], report, owner=record.owner)
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
        self._metrics.encode_seconds.labels(tokens_label(encoded.tokens)).observe(encoded.seconds)
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
