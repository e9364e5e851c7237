"""How the front lets Ray know of documents that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from ray.exceptions import RayError

from service.store.protocol import Claim

__all__ = ["EncoderCalls"]

_log = structlog.get_logger(__name__)


class EncoderCalls:
    """`Leases` of the front, which encodes nothing: for each document that waits there is a call to an encoder.

    Encoders find documents in the store, whoever is called: a call that is lost with its encoder loses nothing. Ray
    adds encoders while there are more calls than they take at once.
    """

    def __init__(self, encoders: Any, *, limit: int) -> None:
        """Prepare.

        Args:
            encoders: handle of their deployment.
            limit: most calls at a time, which should be what all of them together have. More documents wait here, in
                the queue that the front bounds.
        """
        self._encoders = encoders
        self._places = asyncio.Semaphore(limit)
        self._calls: dict[str, asyncio.Task[None]] = {}

    async def take(self, document_id: str, on_lost: Callable[[], None]) -> Claim:  # noqa: ARG002 - of the protocol
        """As `Leases.take`: another has the document, or will have it."""
        if document_id not in self._calls:
            await self._places.acquire()
            self._calls[document_id] = asyncio.create_task(self._call(document_id))
        return "elsewhere"

    async def release(self, document_id: str) -> None:
        """As `Leases.release`."""

    def tell(self, document_id: str, progress: Mapping[str, Any]) -> None:
        """As `Leases.tell`."""

    async def _call(self, document_id: str) -> None:
        try:
            await self._encoders.encode.remote(document_id)
        except RayError as error:
            _log.warning("encoder lost", document_id=document_id, error=type(error).__name__)
        finally:
            del self._calls[document_id]
            self._places.release()
