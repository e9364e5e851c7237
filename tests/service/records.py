"""Records of documents, and the shape of their adapters, as tests of the stores keep them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.store.record import DocumentRecord, EncodeSummary

ADAPTER_SIZE = 1000
FINGERPRINT = "f" * 64
SUMMARY = EncodeSummary(seconds=1.5, steps=4, loss_before=3.0, loss_after=2.0)


def make_record(number: int = 0, **changes: Any) -> DocumentRecord:
    record = DocumentRecord(
        id=f"doc_{number:032x}",
        fingerprint=FINGERPRINT,
        status="queued",
        title="a title",
        metadata={"shelf": [1, None, "α"]},
        bytes=4,
        tokens=2,
        created_at=100.1 + number,
    )
    return replace(record, **changes)
