"""A text while it is written under one adapter: what stands there, and what of it the model has read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from perk.row_cache import RowCache

__all__ = ["TokenTrack"]


class TokenTrack:
    """Tokens with the keys and values of those that were read.

    Attributes:
        adapter: flat buffer ``[P]`` that they are read under; None: the base alone.
        prompt: token ids that it begins with.
        ids: token ids behind them.
        draft: token ids that come next, as a rule: they are read with the others, and kept as far as they are written.
        cache: keys and values of all tokens read so far.
    """

    def __init__(self, adapter: Tensor | None, prompt: Sequence[int], *, room: int) -> None:
        """Begin behind a prompt, with room for so many tokens."""
        self.adapter = adapter
        self.prompt = list(prompt)
        self.ids: list[int] = []
        self.draft: list[int] = []
        self.cache = RowCache()
        self._room = room

    @property
    def full(self) -> bool:
        """Whether there is no room for another token."""
        return len(self.ids) >= self._room

    @property
    def unread(self) -> list[int]:
        """Tokens that the model reads next: at first the prompt, then what was written since it last read."""
        read = self.cache.length
        if not read:
            return [*self.prompt, *self.ids, *self.draft]
        return [*self.ids[read - len(self.prompt) :], *self.draft]

    def cut(self, length: int) -> None:
        """Forget all ids from that one on, read or not."""
        del self.ids[length:]
        self.cache.length = min(self.cache.length, len(self.prompt) + length)

    def settle_draft(self, kept: int) -> None:
        """Forget what was read of the draft behind its first `kept` tokens, which are written now."""
        self.cache.length -= len(self.draft) - kept
        self.draft = []
