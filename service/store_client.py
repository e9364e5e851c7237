"""Encoding in this process, straight into the store that the settings name: what `Client` does, without a service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from perk.errors import PerkError
from service.api.schemas import DocumentOut
from service.client import Busy, ClientError, Refused
from service.engine.document import Document
from service.engine.engine import Engine, EngineParts, load_perk_model
from service.errors import QueueFull, ServiceError
from service.keys import KeyRing, Tenant
from service.metrics import Metrics
from service.settings import Settings
from service.tracing import open_tracer

__all__ = ["StoreClient"]

T = TypeVar("T")


class StoreClient:
    """An engine of its own, for one thread; a context manager, which loads the model and opens the store.

    What was being encoded when it ends, or is killed, stays queued in the store: the next one goes on with it, as a
    service does.
    """

    def __init__(self, settings: Settings, key: str | None) -> None:
        """Prepare; nothing is loaded or opened yet.

        Args:
            settings: of the service whose store it is.
            key: whose documents they will be, where the service wants keys.

        Raises:
            ClientError: it wants another key.
        """
        headers = {} if key is None else {"x-api-key": key}
        tenant = KeyRing(settings.api_keys, settings.limits).tenant(headers)
        if tenant is None:
            raise ClientError("PERK_API_KEYS is set, and --key (or PERK_API_KEY) is none of them")
        self._tenant: Tenant = tenant
        self._settings = settings
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._portal: BlockingPortal = opening.enter_context(start_blocking_portal())
            self._engine: Engine = opening.enter_context(
                self._portal.wrap_async_context_manager(_engine(self._settings))
            )
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def send(self, text: str, title: str) -> dict[str, Any]:
        """As `Client.send`."""

        async def take() -> tuple[Document, bool]:
            documents = self._engine.documents
            return await documents.take(text, title=title, metadata={}, tenant=self._tenant)

        document, _ = self._call(take)
        return _object(document)

    def follow(self, document_id: str) -> Iterator[dict[str, Any]]:
        """As `Client.follow`."""
        documents = self._engine.documents.follow(document_id, self._tenant.owner)

        async def following() -> Document | None:
            return await anext(documents, None)

        while (document := self._call(following)) is not None:
            yield _object(document)

    def _call(self, function: Callable[[], Awaitable[T]]) -> T:
        try:
            return self._portal.call(function)
        except QueueFull as error:
            raise Busy(str(error), error.retry_after) from error
        except (PerkError, ServiceError) as error:
            raise Refused(str(error)) from error


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[Engine]:
    tracer = open_tracer()
    engine = Engine(settings, load_perk_model, Metrics(), tracer, EngineParts(recites=False))
    engine.start()
    try:
        await engine.ready()
        yield engine
    except ServiceError as error:
        raise ClientError(str(error)) from error
    finally:
        await engine.stop()
        tracer.close()


def _object(document: Document) -> dict[str, Any]:
    return DocumentOut.of(document).model_dump()
