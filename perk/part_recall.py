"""The part of a document that a question is about, recalled from its adapter.

All parts are recalled (`perk.recital_row`), unless that adapter has been asked before; then one of them is chosen
(`perk.part_choice`). Questions about one document that come together wait for the same recital.
"""

from __future__ import annotations

from torch import Tensor

from perk.base_model import BaseModel
from perk.part_choice import PartChoice
from perk.readers import Readers
from perk.recital_row import RecitalRow
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
        said = readers.recalled.get(adapter)
        self._work: RecitalRow | PartChoice
        self._work = RecitalRow(adapter, readers, base) if said is None else self._choice(said)

    @property
    def done(self) -> bool:
        """Whether nothing more is to be recalled or read."""
        return isinstance(self._work, PartChoice) and self._work.done

    @property
    def found(self) -> str | None:
        """The part that the question is about, once all is `done`; None where the document has no parts."""
        return self._work.found if isinstance(self._work, PartChoice) else None

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is being recalled or read."""
        return self._work.tracks

    def catch_up(self) -> None:
        """Go on to the choice, if all parts have been recalled for this question or for another."""
        said = self._readers.recalled.get(self._adapter)
        if said is not None and isinstance(self._work, RecitalRow):
            self._work = self._choice(said)

    def take(self, track: TokenTrack, logits: Tensor) -> None:
        """Go on with a track, given logits ``[1 + draft, V]`` of what follows the tokens of its draft and one more."""
        if isinstance(self._work, PartChoice):
            self._work.take(track, logits)
        else:
            self._work.take_all(track, logits)
            self.catch_up()

    def _choice(self, said: tuple[str, ...]) -> PartChoice:
        return PartChoice(said, self._question, self._adapter, self._readers, self._base)
