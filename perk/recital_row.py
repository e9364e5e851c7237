"""A document's parts recalled before anyone asks, so that no question waits for them."""

from __future__ import annotations

from torch import Tensor

from perk.answer_row import AnswerDelta
from perk.base_model import BaseModel
from perk.part_recital import PartRecital
from perk.readers import Readers
from perk.token_track import TokenTrack

__all__ = ["RecitalRow"]


class RecitalRow:
    """A row of a batch that answers nothing. Questions that come meanwhile wait for the same recital."""

    def __init__(self, adapter: Tensor, readers: Readers, base: BaseModel) -> None:
        """Recall nothing yet, from a document's adapter ``[P]``."""
        self._adapter = adapter
        self._readers = readers
        self._recital = readers.recalled.recital(adapter, lambda: PartRecital(adapter, readers.segments, base))

    @property
    def finished(self) -> bool:
        """Whether all has been recalled, here or for a question."""
        return self._readers.recalled.get(self._adapter) is not None

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is being recalled."""
        return [] if self.finished else self._recital.tracks

    def catch_up(self) -> None:
        """Nothing to do: what questions have recalled of it stands in the recital."""

    def take_all(self, track: TokenTrack, logits: Tensor) -> list[AnswerDelta]:
        """Go on with a track, given logits ``[1, V]``; nothing is told."""
        self._recital.take(track, logits[-1])
        if self._recital.done:
            self._readers.recalled.put(self._adapter, self._recital.said)
        return []
