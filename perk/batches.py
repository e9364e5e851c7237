"""Segments of D documents as micro-batches of equal shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perk.segment import Segment

__all__ = ["PADDING_LIMIT", "MicroBatch", "make_micro_batches"]

# A share of a micro-batch.
PADDING_LIMIT = 0.15


@dataclass(frozen=True)
class MicroBatch:
    """S segments of each of D documents, and where their loss is.

    Attributes:
        ids: token ids ``[D·S, T]``, in document order, padded on the right (no real token ever looks there).
        positions: index into a document's ``S·T`` positions of each state that predicts a token, ``[D, K]``.
        own_positions: index of the predicted token itself, whose state gives its weight, ``[D, K]``.
        targets: ids of the predicted tokens, ``[D, K]``.
        shares: weight of each token in the whole document's mean (1 / its loss tokens where none is stressed), 0 for
            padding, ``[D, K]``.
    """

    ids: Tensor
    positions: Tensor
    own_positions: Tensor
    targets: Tensor
    shares: Tensor

    @property
    def documents(self) -> int:
        """D."""
        return self.positions.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors."""
        return self.ids, self.positions, self.own_positions, self.targets, self.shares

    def map(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """The same with each tensor changed."""
        return MicroBatch(*map(change, self.tensors))


def make_micro_batches(
    documents: Sequence[Sequence[Segment]],
    *,
    token_limit: int,
    pad_id: int,
    padding_limit: float = PADDING_LIMIT,
) -> list[MicroBatch]:
    """Group the segments of D documents by length.

    Args:
        documents: segments of each document.
        token_limit: most tokens (``D·S·T``, padding included) of a micro-batch, unless one segment has more.
        pad_id: id for the padding.
        padding_limit: the segments of a micro-batch are filled up to the longest; more padding than this share of it is
            worth another micro-batch.

    Returns:
        Micro-batches that hold every segment once. The sum of their losses is the mean over all loss tokens of each
        document, a stressed one counted as often as it weighs, however they are cut.
    """
    ordered = [sorted(segments, key=lambda segment: -len(segment.ids)) for segments in documents]
    loss_weights = [sum(s.loss_weight for s in segments) for segments in documents]
    slots = max(len(segments) for segments in ordered)
    lengths = [max(len(s[slot].ids) for s in ordered if slot < len(s)) for slot in range(slots)]
    batches = []
    start = 0
    while start < slots:
        end, real = start + 1, lengths[start]
        while end < slots:
            padded = lengths[start] * (end - start + 1)
            real += lengths[end]
            if padded * len(documents) > token_limit or padded - real > padding_limit * padded:
                break
            end += 1
        batches.append(_micro_batch([s[start:end] for s in ordered], end - start, lengths[start], loss_weights, pad_id))
        start = end
    return batches


def _micro_batch(
    documents: list[list[Segment]], rows: int, length: int, loss_weights: Sequence[float], pad_id: int
) -> MicroBatch:
    count = max(sum(s.loss_tokens for s in segments) for segments in documents)
    ids = torch.full((len(documents) * rows, length), pad_id)
    own = torch.zeros(len(documents), count, dtype=torch.long)
    targets = torch.zeros(len(documents), count, dtype=torch.long)
    shares = torch.zeros(len(documents), count)
    for d, segments in enumerate(documents):
        filled = 0
        for row, segment in enumerate(segments):
            size = len(segment.ids)
            ids[d * rows + row, :size] = torch.tensor(segment.ids)
            first = segment.first_loss
            loss = slice(filled, filled + segment.loss_tokens)
            own[d, loss] = torch.arange(row * length + first, row * length + size)
            targets[d, loss] = torch.tensor(segment.ids[first:])
            shares[d, loss] = 1 / (loss_weights[d] or 1)
            filled = loss.stop
            shares[d, filled - segment.stressed_tokens : filled] *= segment.stress
    return MicroBatch(ids=ids, positions=(own - 1).clamp(min=0), own_positions=own, targets=targets, shares=shares)
