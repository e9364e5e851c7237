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
from perk.row_cache import RowCaches, row_attention
from perk.settings import TemplateSettings

__all__ = ["AnswerBatch"]


class AnswerBatch:
    """A batch in slices: either the prompt of one new row, or one token of every other.

    Rows own their caches and carry their adapters, and no operation mixes them: on a CPU in float32, what a row answers
    is the same to the bit whoever is in the batch with it (tests hold that). Elsewhere the products of few rows may
    round differently by the number of rows, and a near tie between two tokens may fall either way.
    """

    def __init__(self, adapted: AdaptedModel, templates: TemplateSettings) -> None:
        self._adapted = adapted
        self._templates = templates
        self._waiting: deque[AnswerRow] = deque()
        self._running: list[AnswerRow] = []
        # Adapters of the running rows in their order, [at least R, P]; None while no row has had one.
        self._adapters: Tensor | None = None
        self._added = 0

    @property
    def rows(self) -> int:
        """Rows that have not ended."""
        return len(self._waiting) + len(self._running)

    @property
    def reading(self) -> bool:
        """Whether the next slice reads a prompt."""
        return bool(self._waiting)

    def add(self, request: AnswerRequest) -> AnswerRow:
        """Let a question join; the model reads it in a slice of its own.

        Raises:
            InvalidInput: it is longer than the model, or its adapter belongs to another.
        """
        size = self._adapted.layout.size
        if request.adapter is not None and request.adapter.shape != (size,):
            raise InvalidInput("adapter", f"shape {tuple(request.adapter.shape)}", f"shape ({size},)")
        row = AnswerRow(self._added, request, self._templates, self._adapted.base)
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
            row = self._waiting.popleft()
            self._join(row)
            return self._decode(range(len(self._running) - 1, len(self._running)))
        if self._running:
            return self._decode(range(len(self._running)))
        return []

    def _decode(self, places: range) -> list[AnswerDelta]:
        """The next token of the rows at `places`."""
        rows = [self._running[place] for place in places]
        logits = self._forward(rows, None if self._adapters is None else self._adapters[places.start : places.stop])
        deltas = [row.take(row_logits) for row, row_logits in zip(rows, logits, strict=True)]
        for place in reversed(places):
            if self._running[place].finished:
                self._remove(place)
        return [delta for delta in deltas if delta is not None]

    def _forward(self, rows: Sequence[AnswerRow], adapters: Tensor | None) -> Tensor:
        """Logits ``[R, V]`` of the next token of rows that all read equally many tokens, under adapters ``[R, P]``."""
        base = self._adapted.base
        ids = torch.tensor([row.next_ids for row in rows], device=base.device)
        caches = RowCaches([row.cache for row in rows])
        starts = torch.tensor([[row.cache.length] for row in rows], device=base.device)
        adapted = [row.request.adapter is not None for row in rows]
        with self._adapted.decoding(), self._adapted.bind_rows(adapters, adapted), row_attention(base):
            states = base.backbone(
                input_ids=ids,
                position_ids=starts + torch.arange(ids.shape[1], device=base.device),
                past_key_values=caches,
                use_cache=True,
            ).last_hidden_state
            caches.grow(ids.shape[1])
            return self._adapted.logits(states[:, -1])

    def _join(self, row: AnswerRow) -> None:
        place = len(self._running)
        self._running.append(row)
        if self._adapters is None:
            if row.request.adapter is None:
                return
            self._adapters = self._room(1 + place)
        elif place == len(self._adapters):
            self._adapters = torch.cat([self._adapters, self._room(place)])
        if row.request.adapter is None:
            # An adapter of zeros changes nothing.
            self._adapters[place] = 0
        else:
            self._adapters[place] = row.request.adapter.to(self._adapters)

    def _room(self, rows: int) -> Tensor:
        base = self._adapted.base
        return torch.zeros(rows, self._adapted.layout.size, device=base.device, dtype=base.dtype)

    def _remove(self, place: int) -> None:
        """The last row takes the place: the others' adapters stay where they are."""
        last = self._running.pop()
        if place < len(self._running):
            self._running[place] = last
            if self._adapters is not None:
                self._adapters[place] = self._adapters[len(self._running)]
        if not self._running:
            self._adapters = None
