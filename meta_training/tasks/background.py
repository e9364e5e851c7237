"""Natural prose to hide facts in: a book, as sentences, split by chapter."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from meta_training.tasks.shared_data import data_file
from meta_training.tasks.task import CountTokens, Split
from perk.errors import InvalidInput

__all__ = ["Background", "as_passages"]

_CHAPTER = re.compile(r"^chapter [ivxlc\d]+", re.IGNORECASE | re.MULTILINE)
_PICTURE = re.compile(r"\[.*?\]", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?][\"”’']*\s+(?=[\"“‘']?[A-Z])")
_DEV_SHARE = 0.1
_PASSAGE_WORDS = 220


class Background:
    """Sentences of a book; the last tenth of its chapters is for development."""

    def __init__(self, *, split: Split, count_tokens: CountTokens) -> None:
        text = _PICTURE.sub(" ", data_file("background/pride_and_prejudice.txt").read_text(encoding="utf-8"))
        starts = [match.end() for match in _CHAPTER.finditer(text)]
        if not starts:
            raise InvalidInput("background", "a book without chapters", "lines that begin with 'Chapter'")
        bounds = zip(starts, [*starts[1:], len(text)], strict=True)
        chapters = [" ".join(text[start:end].replace("_", "").split()) for start, end in bounds]
        first_dev = round(len(chapters) * (1 - _DEV_SHARE))
        chosen = chapters[first_dev:] if split == "dev" else chapters[:first_dev]
        self._sentences = [sentence for chapter in chosen for sentence in _split_sentences(chapter)]
        self._lengths = [count_tokens(f" {sentence}") for sentence in self._sentences]

    def sentences(self, rng: random.Random, tokens: int) -> list[str]:
        """Contiguous sentences from a random place, about `tokens` long together (from the start again at the end)."""
        index = rng.randrange(len(self._sentences))
        taken: list[str] = []
        used = 0
        while used + self._lengths[index] / 2 < tokens:
            taken.append(self._sentences[index])
            used += self._lengths[index]
            index = (index + 1) % len(self._sentences)
        return taken


def as_passages(sentences: Sequence[str], *, least: int = 1) -> list[str]:
    """Sentences joined to passages of about 220 words, or of fewer where there would not be `least` of them."""
    words = sum(len(sentence.split()) for sentence in sentences)
    size = min(_PASSAGE_WORDS, max(words // least, 1))
    passages: list[str] = []
    current: list[str] = []
    for sentence in sentences:
        current.append(sentence)
        if sum(len(s.split()) for s in current) >= size:
            passages.append(" ".join(current))
            current = []
    if current:
        passages.append(" ".join(current))
    return passages


def _split_sentences(text: str) -> list[str]:
    """Sentences with all their quotation marks; a title such as "Mr." ends none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = (text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True))
    return [piece for piece in pieces if piece]
