"""One segment of a document: token ids, and which of them carry loss."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Segment"]


@dataclass(frozen=True)
class Segment:
    """Token ids of one segment.

    Attributes:
        ids: prefix and text.
        prefix_tokens: how many ids at the start are the prefix, which carries no loss.
        stressed_tokens: how many ids at the end weigh `stress` times as much as the others in the loss.
        stress: their weight.
    """

    ids: tuple[int, ...]
    prefix_tokens: int
    stressed_tokens: int = 0
    stress: float = 1.0

    @property
    def first_loss(self) -> int:
        """Index of the first id that carries loss. Without a prefix it is the second: no state predicts the first."""
        return max(self.prefix_tokens, 1)

    @property
    def loss_tokens(self) -> int:
        """How many ids carry loss."""
        return len(self.ids) - self.first_loss

    @property
    def loss_weight(self) -> float:
        """Sum of the weights of the ids that carry loss."""
        return self.loss_tokens + (self.stress - 1) * self.stressed_tokens
