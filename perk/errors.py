"""The errors of the method, as a tree that tells the caller what to do."""

from __future__ import annotations

__all__ = ["BaseMismatch", "BaseModelError", "CheckpointError", "InvalidInput", "PerkError"]


class PerkError(Exception):
    """Root of all errors that this package raises on purpose."""


class InvalidInput(PerkError):
    """A document, question or argument that cannot be used: the caller must change it.

    Attributes:
        field: name of the offending field.
        value: short description of the value; never the text of a document or question.
        limit: what would have been accepted.
    """

    def __init__(self, field: str, value: str, limit: str) -> None:
        super().__init__(f"{field}: got {value}, expected {limit}")
        self.field = field
        self.value = value
        self.limit = limit


class BaseModelError(PerkError):
    """The base model cannot be found, fetched, verified or adapted."""


class CheckpointError(PerkError):
    """The checkpoint cannot be read, is damaged, or does not fit its own settings."""


class BaseMismatch(CheckpointError):
    """The checkpoint was meta-trained on another base model than the one loaded."""
