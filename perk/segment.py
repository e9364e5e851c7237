"""One segment of a document: token ids, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Segment"]


@dataclass(frozen=True)
class Segment:
    """Token ids of one segment.

    Attributes:
        ids: prefix and text.
        prefix_tokens: how many ids at the start are the prefix, which carries no loss.
        weights: what each id from `first_loss` on weighs in the loss, where they do not all weigh one.
    """

    ids: tuple[int, ...]
    prefix_tokens: int
    weights: tuple[float, ...] = ()

    @property
    def first_loss(self) -> int:
        """Index of the first id that may carry loss. Without a prefix it is the second: no state predicts the first."""
        return max(self.prefix_tokens, 1)

    @property
    def carrying(self) -> Sequence[int]:
        """Indices of the ids that carry loss: the others cost nothing in it."""
        behind = range(self.first_loss, len(self.ids))
        return [index for index, weight in zip(behind, self.weights, strict=True) if weight] if self.weights else behind

    @property
    def loss_tokens(self) -> int:
        """How many ids carry loss."""
        return len(self.carrying)

    @property
    def loss_weight(self) -> float:
        """Sum of the weights of the ids that carry loss."""
        return sum(self.weights) if self.weights else self.loss_tokens
