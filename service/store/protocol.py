"""What the engine asks of a store. Every tier of adapters has the same face, whatever lies behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from service.store.record import DocumentRecord, EncodeSummary

__all__ = ["AdapterTier", "Claim", "DocumentStore", "Leases", "Place", "Readiness"]


Claim = Literal["taken", "elsewhere", "over"]
"""Of the encode of a document: it is ours now; another replica has it, or may have; there is nothing to encode."""


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

    async def touch(self, document_id: str, expires_at: float) -> None:
        """The adapter of the document was used, and is kept until `expires_at` if it would have gone before."""

    async def delete(self, document_id: str, *, owner: str = "") -> bool:
        """Forget record, text and adapter, under whatever fingerprint; whether `owner` had such a document."""

    async def expired(self, now: float) -> list[str]:
        """Ids of documents whose adapter is kept beyond its time."""


class AdapterTier(Protocol):
    """Adapters of documents, ``[P]`` float32 on the CPU. Raises as `DocumentStore` does."""

    async def get(self, document_id: str) -> Tensor | None:
        """The adapter, checked; None where there is none (any more)."""

    async def put(self, document_id: str, adapter: Tensor) -> Tensor:
        """Keep an adapter, without effect where the document is gone; the adapter as `get` gives it from now on."""

    async def drop(self, document_id: str, reason: str) -> None:
        """Forget an adapter; `reason` is counted."""


class Leases(Protocol):
    """Who encodes which document, so that one replica does and the others follow. Raises as `DocumentStore` does."""

    async def take(self, document_id: str, on_lost: Callable[[], None]) -> Claim:
        """Try to become the one that encodes a document; renewed until `release`.

        Args:
            document_id: of a queued document.
            on_lost: called, once at most, when another replica has taken it over.
        """

    async def release(self, document_id: str) -> None:
        """Let others have the document; without effect where the lease is not ours. Never raises."""

    def tell(self, document_id: str, progress: Mapping[str, Any]) -> None:
        """Let other replicas know how far the encode of a document is, soon and at no cost to the caller."""
