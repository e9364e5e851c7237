"""Keys and values of rows that are decoded together but share nothing: each row owns its own, at its own length.

There is no padding: a row that joins brings its cache, one that leaves takes it along, and attention over a row reads
what it would read alone. The model sees one cache whose `update` returns a tensor a row instead of one for all, and an
attention function, registered under `ROW_ATTENTION`, that takes them one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from perk.base_model import BaseModel

__all__ = ["ROW_ATTENTION", "RowCache", "RowCaches", "attend", "row_attention"]

ROW_ATTENTION = "perk_rows"

# Tokens that a cache has room for beyond those it must hold: a recalled line fits.
_SPARE = 16


class RowCache:
    """Keys and values of one row; it grows with its tokens, as nobody knows how many there will be.

    Attributes:
        length: tokens in it.
    """

    def __init__(self) -> None:
        self.length = 0
        # One pair a layer: [1, key-value heads, room, head size].
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add tokens ``[1, heads, T, size]`` to a layer; returns all of it, ``[1, heads, length + T, size]``."""
        kept = self._layers.get(layer) or (keys[:, :, :0], values[:, :, :0])
        end = self.length + keys.shape[2]
        if end > kept[0].shape[2]:
            room = max(2 * self.length, end + _SPARE)
            kept = self._layers[layer] = (_with_room(kept[0], room), _with_room(kept[1], room))
        kept[0][:, :, self.length : end] = keys
        kept[1][:, :, self.length : end] = values
        return kept[0][:, :, :end], kept[1][:, :, :end]


def _with_room(kept: Tensor, room: int) -> Tensor:
    """Tokens ``[1, heads, T, size]`` at the front of a tensor for `room` of them."""
    larger = kept.new_empty(*kept.shape[:2], room, kept.shape[3])
    larger[:, :, : kept.shape[2]] = kept
    return larger


class RowCaches:
    """The caches of all rows of one forward pass, in the order of its batch."""

    def __init__(self, rows: Sequence[RowCache]) -> None:
        self._rows = rows

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Add tokens ``[R, heads, T, size]`` of a layer; returns R tensors of keys and R of values."""
        pairs = [
            row.append(layer, key, value)
            for row, key, value in zip(self._rows, keys.split(1), values.split(1), strict=True)
        ]
        return [key for key, _ in pairs], [value for _, value in pairs]

    def get_seq_length(self, _layer: int = 0) -> int:
        """Tokens in the longest row, as transformers asks for it."""
        return max(row.length for row in self._rows)

    def next_positions(self, tokens: int, device: torch.device) -> Tensor:
        """Positions ``[R, T]`` of the next T tokens of every row."""
        starts = torch.tensor([[row.length] for row in self._rows], device=device)
        return starts + torch.arange(tokens, device=device)

    def grow(self, tokens: int) -> None:
        """Count the tokens that a forward pass has added to every layer of every row."""
        for row in self._rows:
            row.length += tokens


@contextmanager
def row_attention(base: BaseModel) -> Iterator[None]:
    """Attend row by row inside the block; the model's cache must be a `RowCaches`."""
    config = base.model.config
    before = config._attn_implementation
    config._attn_implementation = ROW_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    queries: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], *, scaling: float | None = None
) -> Tensor:
    """Attention of the last T tokens of each row over all its tokens.

    Args:
        queries: ``[R, heads, T, size]``.
        keys: of each row, ``[1, key-value heads, length, size]``.
        values: the same.
        scaling: factor of the products; None: the square root of 1 / size.

    Returns:
        ``[R, T, heads, size]``.
    """
    attended = []
    for q, k, v in zip(queries.split(1), keys, values, strict=True):
        new, all_tokens = q.shape[2], k.shape[2]
        # `is_causal` counts from the first token: it is for rows that are read from there.
        behind = 1 < new < all_tokens
        mask = q.new_ones(new, all_tokens, dtype=torch.bool).tril(all_tokens - new) if behind else None
        causal = new > 1 and not behind
        attended.append(
            scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=True)
        )
    together = attended[0] if len(attended) == 1 else torch.cat(attended)
    return together.transpose(1, 2)


def _attend_for_transformers(
    _module: nn.Module,
    query: Tensor,
    key: Sequence[Tensor],
    value: Sequence[Tensor],
    _mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    return attend(query, key, value, scaling=scaling), None


AttentionInterface.register(ROW_ATTENTION, _attend_for_transformers)
