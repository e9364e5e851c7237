"""What the engine asks of a store. Every tier of adapters has the same face, whatever lies behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from service.store.record import DocumentRecord, EncodeSummary

__all__ = ["AdapterTier", "DocumentStore", "Place", "Readiness"]


@dataclass(frozen=True)
class Place:
    """Where a page of the list ends; the next begins after it."""

    created_at: float
    id: str


@dataclass(frozen=True)
class Readiness:
    """What becomes known of a document when its adapter is kept; attributes as in `DocumentRecord`."""

    tokens: int
    segments: int
    ready_at: float
    expires_at: float | None
    encode: EncodeSummary


class DocumentStore(Protocol):
    """Records and texts of the documents of one fingerprint.

    Every method raises `StoreError` where the store cannot be read or written, `StorageFull` where it has no space
    left; nothing is then half-written.
    """

    async def add(self, record: DocumentRecord, text: str) -> tuple[DocumentRecord, bool]:
        """Keep a document; the record that holds from now on, and whether it is this new one.

        A document that is there already stays as it is, except that one that failed is queued again with this text.
        """

    async def find(self, document_id: str) -> DocumentRecord | None:
        """The record of a document, whoever owns it: who asks for another must compare its `owner`."""

    async def page(self, limit: int, after: Place | None, *, owner: str = "") -> list[DocumentRecord]:
        """At most `limit` records of `owner`, the newest first, from `after` on."""

    async def queued(self) -> list[str]:
        """Ids of all documents that wait to be encoded, the oldest first."""

    async def text(self, document_id: str) -> str | None:
        """The normalised text of a document.

        Raises:
            DamagedText: it is not what was stored.
        """

    async def counts(self, *, owner: str | None = None) -> dict[str, int]:
        """Documents by status, of one owner or (None) of all."""

    async def mark_queued(self, document_id: str) -> None:
        """The document waits to be encoded, again."""

    async def mark_ready(self, document_id: str, readiness: Readiness) -> None:
        """The adapter of the document is kept."""

    async def mark_failed(self, document_id: str, error: str) -> None:
        """The document could not be encoded."""

    async def delete(self, document_id: str, *, owner: str = "") -> bool:
        """Forget record, text and adapter, under whatever fingerprint; whether `owner` had such a document."""

    async def expired(self, now: float) -> list[str]:
        """Ids of documents whose adapter is kept beyond its time."""


class AdapterTier(Protocol):
    """Adapters of documents, ``[P]`` float32 on the CPU. Raises as `DocumentStore` does."""

    async def get(self, document_id: str) -> Tensor | None:
        """The adapter, checked; None where there is none (any more)."""

    async def put(self, document_id: str, adapter: Tensor) -> None:
        """Keep an adapter; without effect where the document is gone."""

    async def drop(self, document_id: str, reason: str) -> None:
        """Forget an adapter; `reason` is counted."""
