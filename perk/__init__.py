"""PERK (arXiv 2507.06415): a document becomes a LoRA adapter in a few gradient steps, and answers from it."""

from __future__ import annotations

from perk.answer import Answer, AnswerDelta, Answering, AnswerRequest
from perk.errors import BaseMismatch, BaseModelError, CheckpointError, InvalidInput, PerkError
from perk.inner_loop import EncodedDocument, Encoding
from perk.perk_model import PerkModel

__all__ = [
    "Answer",
    "AnswerDelta",
    "AnswerRequest",
    "Answering",
    "BaseMismatch",
    "BaseModelError",
    "CheckpointError",
    "EncodedDocument",
    "Encoding",
    "InvalidInput",
    "PerkError",
    "PerkModel",
]
