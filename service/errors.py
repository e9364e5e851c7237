"""The errors of the service, as a tree that tells the HTTP layer what to answer."""

from __future__ import annotations

import errno

__all__ = [
    "DamagedText",
    "DocumentFailed",
    "DocumentNotFound",
    "DocumentNotReady",
    "ExtractionFailed",
    "LeaseLost",
    "LoadFailed",
    "NotReady",
    "QueueFull",
    "RateExceeded",
    "ServiceError",
    "StorageFull",
    "StoreError",
    "StoreUnavailable",
    "TokensSpent",
    "TooManyDocuments",
    "TooManyTokens",
    "TookTooLong",
    "is_disk_full",
]

# No space, no quota, or a file beyond the size that this process may write.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ServiceError(Exception):
    """Root of all errors that this package raises on purpose. Their messages never quote a document or question."""


class NotReady(ServiceError):
    """The service cannot do this now, but may later: it is starting, stopping, or has lost its model.

    Attributes:
        reason: ``loading``, ``failed``, ``stopping`` or ``store``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class LoadFailed(ServiceError):
    """The service cannot start, and waiting will not help."""


class QueueFull(ServiceError):
    """A bounded queue has no place left.

    Attributes:
        retry_after: seconds after which a place is likely to be free.
    """

    def __init__(self, waiting: str, limit: int, retry_after: int) -> None:
        super().__init__(f"{limit} {waiting} are waiting already, and no more may (PERK_QUEUE_LIMIT)")
        self.retry_after = retry_after


class RateExceeded(ServiceError):
    """A tenant sends more requests than it may.

    Attributes:
        limit: requests a minute.
        retry_after: seconds after which the next is let in.
    """

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"more than {limit} requests a minute")
        self.limit = limit
        self.retry_after = retry_after


class TokensSpent(ServiceError):
    """A tenant has used the tokens of its day, or asks for more than are left of them.

    Attributes:
        limit: tokens a day.
        retry_after: seconds until the day ends.
    """

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"more than the {limit} tokens a day (UTC) that this key may use")
        self.limit = limit
        self.retry_after = retry_after


class TooManyDocuments(ServiceError):
    """A tenant keeps as many documents as it may; waiting does not help, deleting does."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"this key keeps {limit} documents, and no more may be: delete one first")


class ExtractionFailed(ServiceError):
    """A file has no text that can be read.

    Attributes:
        value: what the file holds, in words.
        limit: what it may hold.
    """

    def __init__(self, value: str, limit: str) -> None:
        super().__init__(f"file: got {value}, expected {limit}")
        self.value = value
        self.limit = limit


class DocumentNotFound(ServiceError):
    """No such document, or it has been deleted."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"there is no document {document_id}")


class DocumentNotReady(ServiceError):
    """The document is asked before it is encoded.

    Attributes:
        retry_after: seconds after which it is likely to be ready.
    """

    def __init__(self, document_id: str, status: str, retry_after: int) -> None:
        super().__init__(f"document {document_id} is {status}; it answers once it is ready")
        self.retry_after = retry_after


class DocumentFailed(ServiceError):
    """The document could not be encoded."""

    def __init__(self, document_id: str, reason: str) -> None:
        super().__init__(f"document {document_id} could not be encoded ({reason}); send its text again to retry")


class TookTooLong(ServiceError):
    """A question has no whole answer by its deadline."""

    def __init__(self) -> None:
        super().__init__("the answer took longer than this service gives a question (PERK_ANSWER_DEADLINE_SECONDS)")


class TooManyTokens(ServiceError):
    """The document is longer than this service takes.

    Attributes:
        limit: most tokens.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"text: got more than {limit} tokens, expected at most {limit} tokens (PERK_MAX_DOCUMENT_TOKENS)"
        )


class StoreError(ServiceError):
    """The store cannot be read or written."""


class StoreUnavailable(StoreError):
    """The store cannot be reached just now; it will be, without anyone's doing."""


class LeaseLost(ServiceError):
    """Another replica encodes the document, or has done so."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"document {document_id} is encoded by another replica")


class StorageFull(StoreError):
    """The disk has no space left."""

    def __init__(self) -> None:
        super().__init__("the disk of the store is full")


class DamagedText(StoreError):
    """The kept text of a document is not what was stored."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"the kept text of document {document_id} is damaged")


def is_disk_full(error: OSError) -> bool:
    """Whether a write failed for want of space."""
    return error.errno in _DISK_FULL
