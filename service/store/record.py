"""What is kept of a document besides its text and its adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["DocumentRecord", "EncodeSummary"]


@dataclass(frozen=True)
class EncodeSummary:
    """How an encode went.

    Attributes:
        seconds: time of its slices.
        steps: inner steps.
        loss_before: loss entering the first step, nats per token.
        loss_after: loss entering the last step, nats per token.
    """

    seconds: float
    steps: int
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class DocumentRecord:
    """A document as the store knows it.

    There is no status ``encoding`` here: what a process is doing ends with the process, so that a document is queued
    until its adapter is kept.

    Attributes:
        id: hash of the text and the fingerprint.
        fingerprint: of all that determines the adapter besides the text.
        status: ``queued``, ``ready`` or ``failed``.
        title: given by the client.
        metadata: given by the client; any JSON object.
        bytes: of the normalised text in UTF-8.
        tokens: of the text.
        created_at: Unix time in seconds.
        segments: that the text was cut into, once ready.
        ready_at: Unix time in seconds, once ready; the shared store keeps it while the document is encoded again.
        expires_at: Unix time in seconds after which the adapter is dropped; None: never.
        encode: summary, once ready.
        error: why it failed.
        text_id: hash of text and fingerprint alone, which `id` is too unless the owner has a salt; empty: it is `id`.
        owner: tenant that sent it; empty where no keys are set. Only this one may know that it exists.
    """

    id: str
    fingerprint: str
    status: Literal["queued", "ready", "failed"]
    title: str | None
    metadata: dict[str, Any] = field(repr=False)
    bytes: int
    tokens: int
    created_at: float
    segments: int | None = None
    ready_at: float | None = None
    expires_at: float | None = None
    encode: EncodeSummary | None = None
    error: str | None = None
    text_id: str = ""
    owner: str = ""
