"""A document's numbered parts (`perk.parts`), recalled from its adapter side by side, each on a track of its own.

What they say is the same for every question.
"""

from __future__ import annotations

from itertools import islice

from torch import Tensor

from perk.base_model import BaseModel
from perk.parts import part_count, part_name, part_start
from perk.readers import LINE_END
from perk.segments import segment_start
from perk.settings import SegmentSettings
from perk.token_track import TokenTrack

__all__ = ["PartRecital"]

# Tokens of a space, a number of three digits and a colon.
_COUNT_TOKENS = 5
# Parts whose keys and values are held together, some 7 MB each of the default base's.
_AT_ONCE = 96
# An adapter is sure of nearly every token that it has read there: the count, and most of a part.
_SURE = 0.5
# Where so many of the last tokens were unsure, the first of them was wrong.
_MOST_UNSURE, _LAST_TOKENS = 3, 16


class _Part:
    """A part while it is recalled. Where memory gives out, the next likeliest token is tried once; then it ends there.

    Attributes:
        track: its tokens.
        ended: whether nothing more is to be recalled of it.
    """

    def __init__(self, track: TokenTrack, base: BaseModel) -> None:
        self.track = track
        self.ended = False
        self._base = base
        # Where the model was unsure, and what else it might have been.
        self._unsure: dict[int, int] = {}
        self._tried: int | None = None

    def take(self, logits: Tensor) -> None:
        """Go on, given logits ``[V]``."""
        ids = self.track.ids
        likeliest, tokens = logits.float().softmax(-1).topk(2)
        token, other = tokens.tolist()
        if float(likeliest[0]) < _SURE:
            self._unsure[len(ids)] = other
        recent = [place for place in self._unsure if place > len(ids) - _LAST_TOKENS]
        if len(recent) >= _MOST_UNSURE:
            self._go_back(recent[0])
        elif token == self._base.eos_id or LINE_END in self._base.tokenizer.decode([token]) or self.track.full:
            self.ended = True
        else:
            ids.append(token)

    def _go_back(self, place: int) -> None:
        if self._tried is not None and place < self._tried + _LAST_TOKENS:
            self.track.cut(self._tried)
            self.ended = True
            return
        self.track.cut(place)
        self.track.ids.append(self._unsure[place])
        self._unsure = {earlier: token for earlier, token in self._unsure.items() if earlier < place}
        self._tried = place


class PartRecital:
    """First it is recalled how many parts there are, then what they say.

    Attributes:
        said: the parts, in order, once all is `done`, "" for one of which nothing came; none where there are no parts.
    """

    def __init__(self, adapter: Tensor, segments: SegmentSettings, base: BaseModel) -> None:
        """Recall nothing yet; all will be recalled under a document's adapter ``[P]``."""
        self.said: tuple[str, ...] = ()
        self._adapter = adapter
        self._segments = segments
        self._base = base
        # The first name, until it has told how many parts there are.
        self._name: TokenTrack | None = TokenTrack(adapter, self._prompt(part_start(1), 1), room=_COUNT_TOKENS)
        # By their places; of those that have ended only what they said is kept, and no keys and values.
        self._parts: dict[int, _Part] = {}
        self._texts: list[str] = []

    @property
    def done(self) -> bool:
        """Whether nothing more is to be recalled."""
        return self._name is None and not self._parts

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is being recalled; the other parts follow as these end."""
        if self._name is not None:
            return [self._name]
        return [part.track for part in islice(self._parts.values(), _AT_ONCE)]

    def take(self, track: TokenTrack, logits: Tensor) -> None:
        """Go on with a track, given logits ``[V]`` of what follows."""
        if self._name is None:
            self._take_text(track, logits)
        else:
            self._take_count(self._name, logits)

    def _take_count(self, track: TokenTrack, logits: Tensor) -> None:
        probability, token = logits.float().softmax(-1).max(-1)
        track.ids.append(int(token))
        count = part_count(part_start(1) + self._text(track))
        if float(probability) < _SURE or (track.full and count is None):
            self._name = None
        elif count is not None:
            self._name = None
            self._begin_parts(count)

    def _begin_parts(self, count: int) -> None:
        prompts = [self._prompt(part_name(number, count), number) for number in range(1, count + 1)]
        room = min(self._segments.max_tokens, self._base.max_positions - max(map(len, prompts)))
        if room > 0:
            tracks = (TokenTrack(self._adapter, ids, room=room) for ids in prompts)
            self._parts = {place: _Part(track, self._base) for place, track in enumerate(tracks)}
        self._texts = [""] * len(self._parts)

    def _take_text(self, track: TokenTrack, logits: Tensor) -> None:
        place = next(place for place, part in self._parts.items() if part.track is track)
        part = self._parts[place]
        part.take(logits)
        if part.ended:
            self._texts[place] = self._text(track).strip()
            del self._parts[place]
        if self.done:
            self.said = tuple(self._texts)

    def _prompt(self, start: str, number: int) -> list[int]:
        # It begins as the segment that it was read as.
        return segment_start(start, self._base.tokenizer, self._segments, number)

    def _text(self, track: TokenTrack) -> str:
        return str(self._base.tokenizer.decode(track.ids, skip_special_tokens=True))
