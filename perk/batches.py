"""Segments of D documents as micro-batches, each padded to one length; or those of one, packed without padding."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from perk.segment import Segment

__all__ = ["PADDING_LIMIT", "MicroBatch", "loss_weight_of", "make_micro_batches", "pack_micro_batches"]

# A share of a micro-batch.
PADDING_LIMIT = 0.15


@dataclass(frozen=True)
class MicroBatch:
    """S segments of each of D documents, which may be some of those that are read together, and where their loss is.

    Attributes:
        members: which of all documents these are, ``[D]``, ascending.
        ids: token ids ``[D·S, T]``, in document order, padded on the right (no real token ever looks there).
        positions: index into a document's ``S·T`` positions of each state that predicts a token, ``[D, K]``.
        own_positions: index of the predicted token itself, whose state gives its weight, ``[D, K]``.
        targets: ids of the predicted tokens, ``[D, K]``.
        shares: weight of each token in the whole document's mean (1 / its loss tokens where all weigh the same), 0 for
            padding, ``[D, K]``.
        lengths: of the segments that lie one behind another in `ids`, which is then one row; None: each has its own.
    """

    members: Tensor
    ids: Tensor
    positions: Tensor
    own_positions: Tensor
    targets: Tensor
    shares: Tensor
    lengths: tuple[int, ...] | None = None

    @property
    def documents(self) -> int:
        """D."""
        return self.positions.shape[0]

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Of all sequences, with their padding."""
        rows, length = self.ids.shape
        return self.lengths or (length,) * rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors."""
        return self.members, self.ids, self.positions, self.own_positions, self.targets, self.shares

    def map(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """The same with each tensor changed."""
        members, ids, positions, own_positions, targets, shares = map(change, self.tensors)
        return MicroBatch(members, ids, positions, own_positions, targets, shares, self.lengths)

    def rows_of(self, every: Tensor) -> Tensor:
        """Its documents' rows of a tensor with a row for each of all documents; the tensor itself where it has all."""
        return every if len(every) == self.documents else every.index_select(0, self.members)

    def add_to(self, every: Tensor, rows: Tensor) -> Tensor:
        """Add rows of its documents to those of all documents, in place; returns these."""
        return every.add_(rows) if len(every) == self.documents else every.index_add_(0, self.members, rows)


def loss_weight_of(segments: Sequence[Segment]) -> float:
    """What the loss tokens of a document's segments weigh together."""
    return sum(segment.loss_weight for segment in segments)


def make_micro_batches(
    documents: Sequence[Sequence[Segment]],
    *,
    token_limit: int,
    pad_id: int,
    padding_limit: float = PADDING_LIMIT,
    loss_weights: Sequence[float] | None = None,
) -> list[MicroBatch]:
    """Group the segments of D documents by length.

    Args:
        documents: segments of each document.
        token_limit: most tokens (``D·S·T``, padding included) of a micro-batch, unless one segment has more.
        pad_id: id for the padding.
        padding_limit: the segments of a micro-batch are filled up to the longest, and its documents to the most
            segments; more padding than this share of all is worth other micro-batches.
        loss_weights: of each document, where these are some of its segments.

    Returns:
        Micro-batches that hold every segment once. The sum of their losses is the mean over all loss tokens of each
        document, each counted as often as it weighs, however they are cut.
    """
    loss_weights = loss_weights or [loss_weight_of(segments) for segments in documents]
    return [
        _micro_batch(rows, loss_weights, pad_id)
        for cell in _cells(documents, padding_limit)
        for rows in _slots(cell, token_limit, padding_limit)
    ]


def pack_micro_batches(
    segments: Sequence[Segment], *, token_limit: int, loss_weight: float | None = None
) -> list[MicroBatch]:
    """Lay the segments of one document one behind another, for layers that keep them apart by their lengths.

    Args:
        segments: of the document.
        token_limit: most tokens of a micro-batch, unless one segment has more.
        loss_weight: of the document, where these are some of its segments.

    Returns:
        Micro-batches of about as many tokens, as for `make_micro_batches`. Those of a length lie side by side.
    """
    loss_weight = loss_weight_of(segments) if loss_weight is None else loss_weight
    ordered = sorted(segments, key=lambda s: -len(s.ids))
    fewest = len(_filled(ordered, token_limit))
    # As many, but none larger than need be: the last would be what is left over.
    sizes = range(1, token_limit)
    size = bisect_left(sizes, True, key=lambda most: len(_filled(ordered, most)) <= fewest) + 1
    return [_packed(group, loss_weight) for group in _filled(ordered, size)]


def _filled(segments: Sequence[Segment], token_limit: int) -> list[list[Segment]]:
    groups: list[list[Segment]] = []
    tokens = 0
    for segment in segments:
        tokens += len(segment.ids)
        if not groups or tokens > token_limit:
            groups.append([])
            tokens = len(segment.ids)
        groups[-1].append(segment)
    return groups


# Segments of some documents, by their numbers, each document's longest first.
_Rows = Mapping[int, Sequence[Segment]]


def _cells(documents: Sequence[Sequence[Segment]], padding_limit: float) -> list[_Rows]:
    """Cut D documents' segments, by documents or by length, until little would be padding or no cut saves any.

    The cut that saves most comes first. A single document stays whole: only its slots can be cut, see `_slots`. One
    without segments is in no cell.
    """
    whole: _Rows = {d: sorted(rows, key=lambda s: -len(s.ids)) for d, rows in enumerate(documents) if rows}
    if len(whole) == 1:
        return [whole]
    most = sum(len(s.ids) for segments in documents for s in segments) / (1 - padding_limit)
    cells = [(whole, _best_cut(whole))]
    while sum(_padded(cell) for cell, _ in cells) > most:
        place = max(range(len(cells)), key=lambda i: _padded(cells[i][0]) - sum(map(_padded, cells[i][1])))
        cell, halves = cells[place]
        if sum(map(_padded, halves)) >= _padded(cell):
            break
        cells[place : place + 1] = [(half, _best_cut(half)) for half in halves]
    return [cell for cell, _ in cells]


def _padded(rows: _Rows) -> int:
    """Tokens of a micro-batch of these, with its padding."""
    return len(rows) * max(map(len, rows.values())) * max(len(segments[0].ids) for segments in rows.values())


def _best_cut(rows: _Rows) -> list[_Rows]:
    """Two parts with the least padding, or what cannot be cut."""
    return min(_cuts(rows), key=lambda halves: sum(map(_padded, halves)), default=[rows])


def _cuts(rows: _Rows) -> Iterator[list[_Rows]]:
    """Every cut between documents of few and of many segments, of short and of long ones, and between segments."""
    keys = {d: (len(segments), len(segments[0].ids)) for d, segments in rows.items()}
    for part in range(2):
        for least in sorted({key[part] for key in keys.values()})[1:]:
            few = {d: segments for d, segments in rows.items() if keys[d][part] < least}
            yield [few, {d: segments for d, segments in rows.items() if d not in few}]
    for least in sorted({len(s.ids) for segments in rows.values() for s in segments})[1:]:
        long = {d: [s for s in segments if len(s.ids) >= least] for d, segments in rows.items()}
        short = {d: segments[len(long[d]) :] for d, segments in rows.items()}
        yield [{d: segments for d, segments in half.items() if segments} for half in (long, short)]


def _slots(rows: _Rows, token_limit: int, padding_limit: float) -> Iterator[_Rows]:
    """Cut by slots, which the documents' segments fill by length, so that no micro-batch is too large."""
    slots = max(map(len, rows.values()))
    lengths = [max(len(s[slot].ids) for s in rows.values() if slot < len(s)) for slot in range(slots)]
    start = 0
    while start < slots:
        end, real = start + 1, lengths[start]
        while end < slots:
            padded = lengths[start] * (end - start + 1)
            real += lengths[end]
            if padded * len(rows) > token_limit or padded - real > padding_limit * padded:
                break
            end += 1
        yield {d: segments[start:end] for d, segments in rows.items()}
        start = end


def _micro_batch(rows: _Rows, loss_weights: Sequence[float], pad_id: int) -> MicroBatch:
    members = sorted(d for d, segments in rows.items() if segments)
    slots = max(len(rows[d]) for d in members)
    length = max(len(rows[d][0].ids) for d in members)
    count = max(sum(s.loss_tokens for s in rows[d]) for d in members)
    ids = torch.full((len(members) * slots, length), pad_id)
    own = torch.zeros(len(members), count, dtype=torch.long)
    targets = torch.zeros(len(members), count, dtype=torch.long)
    shares = torch.zeros(len(members), count)
    starts = range(0, slots * length, length)
    for place, d in enumerate(members):
        for row, segment in enumerate(rows[d]):
            ids[place * slots + row, : len(segment.ids)] = torch.tensor(segment.ids)
        losses = _losses(rows[d], starts, loss_weights[d])
        for every, of_document in zip((own, targets, shares), losses, strict=True):
            every[place, : len(of_document)] = of_document
    return MicroBatch(torch.tensor(members), ids, (own - 1).clamp(min=0), own, targets, shares)


def _packed(segments: Sequence[Segment], loss_weight: float) -> MicroBatch:
    lengths = tuple(len(segment.ids) for segment in segments)
    ids = torch.tensor([token for segment in segments for token in segment.ids])
    own, targets, shares = (each[None] for each in _losses(segments, [0, *accumulate(lengths)], loss_weight))
    return MicroBatch(torch.zeros(1, dtype=torch.long), ids[None], own - 1, own, targets, shares, lengths)


def _losses(segments: Sequence[Segment], starts: Sequence[int], loss_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where the tokens with loss are, their ids and their shares ``[K]``, of segments that begin at those places."""
    own: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    for segment, start in zip(segments, starts, strict=False):
        carrying = segment.carrying
        own += (start + index for index in carrying)
        targets += (segment.ids[index] for index in carrying)
        shares += [weight for weight in segment.weights if weight] or [1.0] * len(carrying)
    return (
        torch.tensor(own, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(shares) / (loss_weight or 1),
    )
