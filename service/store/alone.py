"""Leases where there is no other replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.store.protocol import Claim

__all__ = ["NoOtherReplica"]


class NoOtherReplica:
    """`Leases` of the embedded store: this process has every document."""

    async def take(self, document_id: str, on_lost: Callable[[], None]) -> Claim:  # noqa: ARG002 - of the protocol
        """As `Leases.take`."""
        return "taken"

    async def release(self, document_id: str) -> None:
        """As `Leases.release`."""

    def tell(self, document_id: str, progress: Mapping[str, Any]) -> None:
        """As `Leases.tell`."""
