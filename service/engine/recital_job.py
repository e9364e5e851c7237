"""A document's parts recalled while the model has nothing else to do."""

from __future__ import annotations

import weakref

import structlog
from torch import Tensor

from perk.answer_batch import AnswerBatch
from perk.perk_model import PerkModel
from perk.recital_row import RecitalRow
from service.logging import describe_error

__all__ = ["RecitalJob"]

_log = structlog.get_logger(__name__)


class RecitalJob:
    """Recalls what an adapter says, for the questions to come, a token of each part in a slice.

    Attributes:
        document_id: of the document.
        done: whether nothing is left to recall.
    """

    kind = "recital"
    rows = 0

    def __init__(self, document_id: str, adapter: Tensor) -> None:
        """Recall nothing yet, from an adapter ``[P]``, which is not kept until the first slice."""
        self.document_id = document_id
        self.done = False
        self._adapter = weakref.ref(adapter)
        self._work: tuple[AnswerBatch, RecitalRow] | None = None

    def advance(self, model: PerkModel) -> None:
        """Run one slice. Where an error ends it, questions recall by themselves, and are told what they meet."""
        try:
            self._advance(model)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            _log.error("recital failed", document_id=self.document_id, **describe_error(error))
            self.done = True
        if self.done:
            self._work = None

    def _advance(self, model: PerkModel) -> None:
        if self._work is None:
            adapter = self._adapter()
            if adapter is None or not model.settings.segments.parts:
                self.done = True
                return
            batch = model.start_batch()
            self._work = batch, batch.add_recital(adapter)
        batch, row = self._work
        batch.advance()
        self.done = row.finished
