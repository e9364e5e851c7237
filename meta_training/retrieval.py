"""BM25 retrieval of a document's passages: what stands against an adapter at the cheapest."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["PassageIndex"]

_WORD = re.compile(r"\w+")


class PassageIndex:
    """A document's passages by the words they hold."""

    def __init__(self, passages: Sequence[str]) -> None:
        """Index at least one passage."""
        # An optional dependency, which evaluation by other methods needs nothing of.
        import bm25s  # type: ignore[import-untyped]

        self._passages = list(passages)
        self._index = bm25s.BM25()
        self._index.index([_words(passage) for passage in passages], show_progress=False)

    def best(self, question: str, count: int) -> list[str]:
        """Up to `count` passages that fit the question best, in the order of the document."""
        known = [word for word in dict.fromkeys(_words(question)) if word in self._index.vocab_dict]
        if not known:
            return self._passages[:count]
        scores = self._index.get_scores(known)
        ranked = sorted(range(len(self._passages)), key=lambda index: -scores[index])[:count]
        return [self._passages[index] for index in sorted(ranked)]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
