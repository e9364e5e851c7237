"""Lines that a document's adapter recalls for the reader: the one it waits for, and those that come next as a rule.

Tokens that are decoded together cost little more than one, and a series is mostly read from its first entry to its
last. So the entries behind the one that is wanted are recalled beside it. Each stands on a track of its own, behind its
own name alone: it says the same whenever it is recalled.
"""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from perk.base_model import BaseModel
from perk.readers import LINE_END
from perk.segments import segment_start
from perk.series import likely_cue
from perk.settings import SegmentSettings
from perk.token_track import TokenTrack

__all__ = ["LineRecall"]

# Fewest and most lines that are recalled together; between them, as many as have been read of any series.
_FEWEST, _MOST = 4, 8
# Of a text with numbered series, the adapter has read the lines that list them, and finds every token of those likely
# (0.74 and more in examples/story.txt and errands.txt); of another it makes one up (0.06 in article.txt).
_SURE = 0.25


class LineRecall:
    """The lines of a document that have been recalled for a question, and those that are being recalled."""

    def __init__(self, adapter: Tensor | None, segments: SegmentSettings, base: BaseModel) -> None:
        """Recall nothing yet; lines will be recalled under a document's adapter ``[P]``."""
        self._adapter = adapter
        self._segments = segments
        self._base = base
        self._running: dict[str, TokenTrack] = {}
        # Token ids of those that have ended, by their cues too.
        self._ended: dict[str, list[int]] = {}
        # The least probability of their tokens.
        self._sureness: dict[str, float] = {}
        # By the name of a series, how many of its lines were wanted: others are as long, as a rule.
        self._read: Counter[str] = Counter()

    def tracks(self, cue: str) -> list[TokenTrack]:
        """Of the lines that are being written, that of an entry first."""
        wanted = self._running[cue]
        return [wanted, *(track for track in self._running.values() if track is not wanted)]

    def want(self, cue: str) -> None:
        """Begin with the line of an entry and with some that are likely to follow, unless it has begun."""
        self._read[cue.rpartition(" ")[0]] += 1
        if cue in self._running or cue in self._ended:
            return
        for _ in range(min(max(_FEWEST, *self._read.values()), _MOST)):
            if cue not in self._running and cue not in self._ended:
                # It begins as the segment that it was read as.
                prompt = segment_start(cue, self._base.tokenizer, self._segments)
                self._running[cue] = TokenTrack(self._adapter, prompt, room=self._segments.max_tokens)
            cue = likely_cue(cue)

    def take(self, track: TokenTrack, logits: Tensor) -> None:
        """Go on with a line, given logits ``[V]`` of what follows."""
        cue = next(cue for cue, running in self._running.items() if running is track)
        probability, likeliest = logits.float().softmax(-1).max(-1)
        token = int(likeliest)
        self._sureness[cue] = min(self._sureness.get(cue, 1.0), float(probability))
        if token != self._base.eos_id:
            track.ids.append(token)
            if LINE_END not in self._decode(track.ids) and not track.full:
                return
        self._ended[cue] = self._running.pop(cue).ids

    def said(self, cue: str, room: int) -> str | None:
        """What a wanted line says behind its cue, in at most so many tokens; None while it is being written."""
        ids = self._ended.get(cue)
        return None if ids is None else self._decode(ids[:room]).partition(LINE_END)[0]

    def is_sure(self, cue: str) -> bool:
        """Whether a line that has ended was recalled, and not made up."""
        return self._sureness.get(cue, 1.0) >= _SURE

    def _decode(self, ids: list[int]) -> str:
        return str(self._base.tokenizer.decode(ids, skip_special_tokens=True))
