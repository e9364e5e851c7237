"""A document's parts recalled once for all questions: the first half of each, or a row by itself before anyone asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from perk.base_model import BaseModel
from perk.part_recital import PartRecital
from perk.readers import Readers
from perk.token_track import TokenTrack

if TYPE_CHECKING:
    from perk.answer_row import AnswerDelta

__all__ = ["RecitalRow"]


class RecitalRow:
    """A recital as a row of a batch, which answers nothing. All that recall the same adapter share the recital."""

    def __init__(self, adapter: Tensor, readers: Readers, base: BaseModel) -> None:
        """Recall nothing yet, from a document's adapter ``[P]``."""
        self._adapter = adapter
        self._readers = readers
        self._recital = readers.recalled.recital(adapter, lambda: PartRecital(adapter, readers.segments, base))

    @property
    def finished(self) -> bool:
        """Whether all has been recalled, here or elsewhere."""
        return self._readers.recalled.get(self._adapter) is not None

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is being recalled."""
        return [] if self.finished else self._recital.tracks

    def catch_up(self) -> None:
        """Nothing to do: what others have recalled of it stands in the recital."""

    def take_all(self, track: TokenTrack, logits: Tensor) -> list[AnswerDelta]:
        """Go on with a track, given logits ``[1, V]``; nothing is told."""
        self._recital.take(track, logits[-1])
        if self._recital.done:
            self._readers.recalled.put(self._adapter, self._recital.said)
        return []
