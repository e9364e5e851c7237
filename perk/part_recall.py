"""The part of a document that a question is about, recalled from its adapter.

All parts are recalled (`perk.part_recital`), unless that adapter has been asked before; then one of them is chosen
(`perk.part_choice`).
"""

from __future__ import annotations

from torch import Tensor

from perk.base_model import BaseModel
from perk.part_choice import PartChoice
from perk.part_recital import PartRecital
from perk.readers import Readers
from perk.token_track import TokenTrack

__all__ = ["PartRecall"]


class PartRecall:
    """What a document says about one question."""

    def __init__(self, adapter: Tensor, question: str, readers: Readers, base: BaseModel) -> None:
        """Recall nothing yet, from a document's adapter ``[P]``."""
        self._adapter = adapter
        self._question = question
        self._readers = readers
        self._base = base
        self._recital: PartRecital | None = None
        self._choice: PartChoice | None = None
        said = readers.recalled.get(adapter)
        if said is None:
            self._recital = PartRecital(adapter, readers.segments, base)
        else:
            self._choose(said)

    @property
    def done(self) -> bool:
        """Whether nothing more is to be recalled or read."""
        return self._choice is not None and self._choice.done

    @property
    def found(self) -> str | None:
        """The part that the question is about, once all is `done`; None where the document has no parts."""
        return None if self._choice is None else self._choice.found

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is being recalled or read."""
        running = self._choice or self._recital
        return [] if running is None else running.tracks

    def take(self, track: TokenTrack, logits: Tensor) -> None:
        """Go on with a track, given logits ``[1 + draft, V]`` of what follows the tokens of its draft and one more."""
        if self._choice is not None:
            self._choice.take(track, logits)
        elif self._recital is not None:
            self._recital.take(track, logits[-1])
            if self._recital.done:
                self._readers.recalled.put(self._adapter, self._recital.said)
                self._choose(self._recital.said)

    def _choose(self, said: tuple[str, ...]) -> None:
        self._choice = PartChoice(said, self._question, self._adapter, self._readers, self._base)
