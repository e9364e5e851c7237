"""A document as clients see it: what the store keeps of it, and what is being done with it now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from service.engine.flight import Flight
from service.engine.jobs import EncodeProgress
from service.store.record import DocumentRecord

__all__ = ["Document"]


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
        record: what is kept.
        status: ``queued``, ``encoding``, ``ready`` or ``failed``.
        progress: of its encode, 0 to 1.
        tokens: of its text.
        segments: that the text was cut into, once the encode has begun.
        model: name of the base model.
        checkpoint: name of the checkpoint.
        encoding: how far its encode is, while it runs.
        seconds_left: of its encode, estimated, once there is something to go by.
    """

    record: DocumentRecord
    status: Literal["queued", "encoding", "ready", "failed"]
    progress: float
    tokens: int
    segments: int | None
    model: str
    checkpoint: str
    encoding: EncodeProgress | None = None
    seconds_left: float | None = None

    @classmethod
    def of(cls, record: DocumentRecord, flight: Flight | None, *, model: str, checkpoint: str) -> Document:
        """A record as it stands, and the flight that it is on, if any."""
        document = cls(
            record=record,
            status=record.status,
            progress=1.0 if record.status == "ready" else 0.0,
            tokens=record.tokens,
            segments=record.segments,
            model=model,
            checkpoint=checkpoint,
        )
        if record.status == "queued" and flight is not None and flight.progress is not None:
            progress = flight.progress
            return replace(
                document,
                status="encoding",
                progress=progress.done,
                tokens=progress.tokens[0],
                segments=progress.segments[0],
                encoding=progress,
                seconds_left=flight.seconds_left,
            )
        return document

    @property
    def ended(self) -> bool:
        """Whether its encode has ended, well or not."""
        return self.status in ("ready", "failed")
