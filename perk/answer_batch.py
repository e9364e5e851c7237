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
from perk.reader import Reader
from perk.row_cache import RowCaches
from perk.settings import TemplateSettings
from perk.token_track import TokenTrack

__all__ = ["AnswerBatch"]


class AnswerBatch:
    """A batch in slices: either one row reads several tokens (its prompt, a recalled line), or every row writes one.

    Rows own their caches and carry their adapters, and no operation mixes them: on a CPU in float32, what a row answers
    is the same to the bit whoever is in the batch with it (tests hold that). Elsewhere the products of few rows may
    round differently by the number of rows, and a near tie between two tokens may fall either way.
    """

    def __init__(self, adapted: AdaptedModel, templates: TemplateSettings, reader: Reader | None = None) -> None:
        self._adapted = adapted
        self._templates = templates
        self._reader = reader
        self._waiting: deque[AnswerRow] = deque()
        self._running: list[AnswerRow] = []
        # Adapters of the running rows in their order, [at least R, P]; None while no row has had one.
        self._adapters: Tensor | None = None
        # Which tensor each running row's was copied from: a row changes it when it recalls a line.
        self._copied: list[Tensor | None] = []
        self._added = 0

    @property
    def rows(self) -> int:
        """Rows that have not ended."""
        return len(self._waiting) + len(self._running)

    @property
    def reading(self) -> bool:
        """Whether the next slice reads a prompt or a line."""
        return bool(self._waiting) or any(len(row.track.unread) > 1 for row in self._running)

    def add(self, request: AnswerRequest) -> AnswerRow:
        """Let a question join; the model reads it in a slice of its own.

        Raises:
            InvalidInput: it is longer than the model, or its adapter belongs to another.
        """
        size = self._adapted.layout.size
        if request.adapter is not None and request.adapter.shape != (size,):
            raise InvalidInput("adapter", f"shape {tuple(request.adapter.shape)}", f"shape ({size},)")
        row = AnswerRow(self._added, request, self._templates, self._adapted.base, self._reader)
        self._added += 1
        self._waiting.append(row)
        return row

    @torch.inference_mode()
    def cancel(self, row: AnswerRow) -> None:
        """Take a row out; nothing more is told of it."""
        row.finished = True
        if row in self._waiting:
            self._waiting.remove(row)
        elif row in self._running:
            self._remove(self._running.index(row))

    @torch.inference_mode()
    def advance(self) -> list[AnswerDelta]:
        """Run one slice."""
        if self._waiting:
            self._running.append(self._waiting.popleft())
            self._copied.append(None)
        if not self._running:
            return []
        for place, row in enumerate(self._running):
            if len(row.track.unread) > 1:
                return self._decode(range(place, place + 1))
        return self._decode(range(len(self._running)))

    def _decode(self, places: range) -> list[AnswerDelta]:
        """The next token of the rows at `places`."""
        rows = [self._running[place] for place in places]
        for place in places:
            self._place_adapter(place)
        logits = self._forward(
            [row.track for row in rows],
            None if self._adapters is None else self._adapters[places.start : places.stop],
        )
        deltas = [delta for row, row_logits in zip(rows, logits, strict=True) for delta in row.take_all(row_logits)]
        for place in reversed(places):
            if self._running[place].finished:
                self._remove(place)
        return deltas

    def _forward(self, tracks: Sequence[TokenTrack], adapters: Tensor | None) -> Tensor:
        """Logits ``[R, 1 + draft, V]`` of what comes next, under adapters ``[R, P]``.

        Args:
            tracks: R of them, that all read equally many tokens and have equally long drafts.
            adapters: theirs; None: none of them has one.
        """
        ids = torch.tensor([track.unread for track in tracks], device=self._adapted.base.device)
        caches = RowCaches([track.cache for track in tracks])
        adapted = [track.adapter is not None for track in tracks]
        return self._adapted.decode(ids, caches, adapters, adapted, last=1 + len(tracks[0].draft))

    def _place_adapter(self, place: int) -> None:
        """Copy a row's adapter to its place, if another one stands there."""
        adapter = self._running[place].track.adapter
        if self._adapters is None:
            if adapter is None:
                return
            self._adapters = self._room(len(self._running))
        elif place >= len(self._adapters):
            self._adapters = torch.cat([self._adapters, self._room(len(self._adapters))])
        if adapter is not self._copied[place]:
            # An adapter of zeros changes nothing.
            self._adapters[place] = 0 if adapter is None else adapter.to(self._adapters)
            self._copied[place] = adapter

    def _room(self, rows: int) -> Tensor:
        base = self._adapted.base
        return torch.zeros(rows, self._adapted.layout.size, device=base.device, dtype=base.dtype)

    def _remove(self, place: int) -> None:
        """The last row takes the place: the others' adapters stay where they are."""
        last, copied = self._running.pop(), self._copied.pop()
        if place < len(self._running):
            self._running[place], self._copied[place] = last, copied
            if self._adapters is not None:
                self._adapters[place] = self._adapters[len(self._running)]
        if not self._running:
            self._adapters = None
