"""Questions decoded together, that join and leave between two tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from perk.answer_request import AnswerRequest
from perk.answer_row import AnswerDelta, AnswerRow
from perk.errors import InvalidInput
from perk.lora import AdaptedModel
from perk.readers import Readers
from perk.recital_row import RecitalRow
from perk.row_cache import RowCaches
from perk.settings import TemplateSettings
from perk.token_track import TokenTrack

__all__ = ["AnswerBatch"]


# Tokens that are decoded in one slice: every row writes one, and where rows leave room, some recall several lines.
_MOST_TRACKS = 16

_Row = AnswerRow | RecitalRow


class AnswerBatch:
    """A batch in slices: either one row reads several tokens (its prompt, recalled lines), or every row writes one.

    Rows own their caches and carry their adapters, and no operation mixes them: on a CPU in float32, what a row answers
    is the same to the bit whoever is in the batch with it (tests hold that). Elsewhere the products of few rows may
    round differently by the number of rows, and a near tie between two tokens may fall either way.
    """

    def __init__(self, adapted: AdaptedModel, templates: TemplateSettings, readers: Readers | None = None) -> None:
        """Begin without a question; `templates` and `readers` as in `AnswerRow`."""
        self._adapted = adapted
        self._templates = templates
        self._readers = readers
        self._waiting: deque[AnswerRow] = deque()
        self._running: list[_Row] = []
        self._places = adapted.start_decoding()
        self._added = 0

    @property
    def rows(self) -> int:
        """Rows that have not ended."""
        return len(self._waiting) + len(self._running)

    @property
    def reading(self) -> bool:
        """Whether the next slice reads a prompt or lines."""
        return bool(self._waiting) or any(_reads(track) for row in self._running for track in row.tracks)

    def add(self, request: AnswerRequest) -> AnswerRow:
        """Let a question join; the model reads it in a slice of its own.

        Raises:
            InvalidInput: it is longer than the model, or its adapter belongs to another.
        """
        size = self._adapted.layout.size
        if request.adapter is not None and request.adapter.shape != (size,):
            raise InvalidInput("adapter", f"shape {tuple(request.adapter.shape)}", f"shape ({size},)")
        row = AnswerRow(self._added, request, self._templates, self._adapted.base, self._readers)
        self._added += 1
        self._waiting.append(row)
        return row

    def add_recital(self, adapter: Tensor) -> RecitalRow:
        """Let the parts be recalled of a document's adapter ``[P]``, if it has any, for the questions to come.

        Raises:
            ValueError: the batch was begun without readers.
        """
        if self._readers is None:
            raise ValueError("readers: none, in which what is recalled is kept")
        row = RecitalRow(adapter, self._readers, self._adapted.base)
        self._running.append(row)
        return row

    def cancel(self, row: AnswerRow) -> None:
        """Take a row out; nothing more is told of it."""
        row.finished = True
        if row in self._waiting:
            self._waiting.remove(row)
        elif row in self._running:
            self._remove([row])

    @torch.inference_mode()
    def advance(self) -> list[AnswerDelta]:
        """Run one slice."""
        if self._waiting:
            self._running.append(self._waiting.popleft())
        tracks = self._tracks()
        for own in tracks:
            first = next((track for _, track in own if _reads(track)), None)
            if first is not None:
                return self._decode([(row, track) for row, track in own if _reads_like(track, first)])
        if not tracks:
            return []
        firsts, others = [own[0] for own in tracks], [one for own in tracks for one in own[1:]]
        return self._decode([*firsts, *others[: max(0, _MOST_TRACKS - len(firsts))]])

    def _tracks(self) -> list[list[tuple[_Row, TokenTrack]]]:
        """Of each running row that has any, its tracks, but for those that a row before it shares."""
        tracks = []
        taken: set[int] = set()
        for row in self._running:
            row.catch_up()
            own = [(row, track) for track in row.tracks if id(track) not in taken]
            taken.update(id(track) for _, track in own)
            if own:
                tracks.append(own)
        return tracks

    def _decode(self, tracks: Sequence[tuple[_Row, TokenTrack]]) -> list[AnswerDelta]:
        """The next token of tracks that read equally many tokens and have equally long drafts."""
        read = [track for _, track in tracks]
        ids = torch.tensor([track.unread for track in read], device=self._adapted.base.device)
        caches = RowCaches([track.cache for track in read])
        adapters = [track.adapter for track in read]
        logits = self._adapted.decode(ids, caches, adapters, self._places, last=1 + len(read[0].draft))
        deltas = [
            delta
            for (row, track), own_logits in zip(tracks, logits, strict=True)
            for delta in row.take_all(track, own_logits)
        ]
        self._remove([row for row, _ in tracks if row.finished])
        return deltas

    def _remove(self, rows: Sequence[_Row]) -> None:
        """The last row takes the place of one that leaves: the others' adapters stay where they are."""
        for row in rows:
            place, last = self._running.index(row), self._running.pop()
            if place < len(self._running):
                self._running[place] = last
        if not self._running:
            self._places = self._adapted.start_decoding()


def _reads(track: TokenTrack) -> bool:
    """Whether a track reads more than the token it wrote last."""
    return len(track.unread) > 1


def _reads_like(track: TokenTrack, other: TokenTrack) -> bool:
    return (len(track.unread), len(track.draft)) == (len(other.unread), len(other.draft))
