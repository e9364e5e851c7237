"""A document's numbered parts (`perk.parts`), recalled from its adapter, and the one that a question is about.

All of them are recalled side by side, each on a track of its own. Then every track goes on with the question, under the
same adapter: the part behind which it comes least as a surprise is the one that is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perk.base_model import BaseModel
from perk.parts import part_count, part_name, part_start
from perk.readers import LINE_END
from perk.segments import segment_start
from perk.settings import SegmentSettings
from perk.token_track import TokenTrack

__all__ = ["PartRecall"]

# Tokens of a number and a colon.
_COUNT_TOKENS = 4
# An adapter is sure of nearly every token that it has read there: the count, and most of a part.
_SURE = 0.5
# Where so many of the last tokens were unsure, the first of them was wrong.
_MOST_UNSURE, _LAST_TOKENS = 3, 16
_BEFORE_QUESTION = "\nQuestion:"
# Of a longer question, its end chooses the part: it is read behind each of them, and all at once.
_QUESTION_TOKENS = 48


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


class PartRecall:
    """The parts of a document for one question.

    First it is recalled how many there are, then what they say, and then how well the question goes with each.

    Attributes:
        found: what the part says that the question is about, once all is `done`; None where there are no parts.
    """

    def __init__(self, adapter: Tensor, question: str, segments: SegmentSettings, base: BaseModel) -> None:
        """Recall nothing yet; all will be recalled under a document's adapter ``[P]``."""
        self.found: str | None = None
        self._adapter = adapter
        whole = base.tokenizer.encode(f" {question}", add_special_tokens=False, verbose=False)
        self._question = whole[-_QUESTION_TOKENS:]
        self._before_question = base.tokenizer.encode(_BEFORE_QUESTION, add_special_tokens=False, verbose=False)
        self._segments = segments
        self._base = base
        self._running = [TokenTrack(adapter, self._prompt(part_start(1)), room=_COUNT_TOKENS)]
        self._parts: list[_Part] = []
        self._surprise: dict[str, float] = {}

    @property
    def done(self) -> bool:
        """Whether nothing more is to be recalled."""
        return not self._running

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is being recalled or read."""
        return list(self._running)

    def take(self, track: TokenTrack, logits: Tensor) -> None:
        """Go on with a track, given logits ``[1 + draft, V]`` of what follows the tokens of its draft and one more."""
        if not self._parts:
            self._take_count(track, logits[-1])
        elif track.draft:
            self._take_question(track, logits)
        else:
            self._take_text(track, logits[-1])

    def _take_count(self, track: TokenTrack, logits: Tensor) -> None:
        probability, token = logits.float().softmax(-1).max(-1)
        track.ids.append(int(token))
        count = part_count(part_start(1) + self._text(track))
        if float(probability) < _SURE or (track.full and count is None):
            self._running = []
        elif count is not None:
            self._begin_parts(count)

    def _begin_parts(self, count: int) -> None:
        prompts = [self._prompt(part_name(number, count)) for number in range(1, count + 1)]
        behind = len(self._before_question) + len(self._question)
        room = min(self._segments.max_tokens, self._base.max_positions - behind - max(map(len, prompts)))
        # Without room the question could not be read behind any of them.
        if room > 0:
            self._parts = [_Part(TokenTrack(self._adapter, ids, room=room), self._base) for ids in prompts]
        self._running = [part.track for part in self._parts]

    def _take_text(self, track: TokenTrack, logits: Tensor) -> None:
        part = next(part for part in self._parts if part.track is track)
        part.take(logits)
        if part.ended:
            self._running.remove(track)
        if not self._running:
            self._running = [part.track for part in self._parts if part.track.ids]
            for told in self._running:
                told.ids.extend(self._before_question)
                told.draft = list(self._question)

    def _take_question(self, track: TokenTrack, logits: Tensor) -> None:
        chosen = torch.tensor(track.draft, device=logits.device)[:, None]
        surprise = -float(logits[:-1].float().log_softmax(-1).gather(1, chosen).sum())
        del track.ids[-len(self._before_question) :]
        self._surprise[self._text(track).strip()] = surprise
        self._running.remove(track)
        if not self._running:
            self.found = min(self._surprise, key=self._surprise.__getitem__)

    def _prompt(self, start: str) -> list[int]:
        return segment_start(start, self._base.tokenizer, self._segments)

    def _text(self, track: TokenTrack) -> str:
        return str(self._base.tokenizer.decode(track.ids, skip_special_tokens=True))
