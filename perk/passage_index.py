"""Passages by the words that they share with a question (BM25)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s  # type: ignore[import-untyped]

__all__ = ["PassageIndex"]

_WORD = re.compile(r"\w+")


class PassageIndex:
    """Passages of one text, to be found by their words."""

    def __init__(self, passages: Sequence[str]) -> None:
        """Index at least one passage."""
        self._count = len(passages)
        self._index = bm25s.BM25()
        words = [_words(passage) for passage in passages]
        if any(words):
            self._index.index(words, show_progress=False)
        self._known = frozenset().union(*words)

    def best(self, question: str, count: int) -> list[int]:
        """Places of up to `count` passages that fit a question best, in order; if it shares no word, the first ones."""
        known = [word for word in dict.fromkeys(_words(question)) if word in self._known]
        if not known:
            return list(range(min(count, self._count)))
        scores = self._index.get_scores(known)
        return sorted(sorted(range(self._count), key=lambda place: -scores[place])[:count])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
