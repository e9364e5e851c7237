"""Sentences of a passage: where an answer stands, as its support."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["sentence_at", "sentences", "split_title", "supporting_sentence", "words_up_to"]

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"”’')]*(?=\s)|$)", re.DOTALL)

_WORD = re.compile(r"\S+")
# Words before an answer that may lead to it, and how many do where the question has none of them.
_LEAD, _SHORT_LEAD = 10, 5
# Fewest letters of a word that tells one sentence from another.
_TELLING = 4
_TITLE = re.compile(r"([^.]{2,60})\. ")


def split_title(passage: str) -> tuple[str, str]:
    """The title that a passage of an encyclopedia begins with, up to the first full stop, and the rest; "" for none."""
    title = _TITLE.match(passage)
    return (title[1], passage[title.end() :]) if title else ("", passage)


def sentences(passage: str) -> list[str]:
    """Sentences of a passage, in order."""
    return [match[0].strip() for match in _SENTENCE.finditer(passage)]


def supporting_sentence(passage: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The first sentence with the first answer that the passage holds; nothing where it holds none literally."""
    found = (sentence for answer in answers for sentence in sentences(passage) if answer.lower() in sentence.lower())
    return tuple(sentence for sentence in [next(found, "")] if sentence)


def sentence_at(passage: str, start: int) -> tuple[str, ...]:
    """The sentence that holds the character at `start`; nothing where there is no such character."""
    return tuple(match[0].strip() for match in _SENTENCE.finditer(passage) if match.start() <= start < match.end())


def words_up_to(sentence: str, start: int, end: int, question: str) -> str:
    """The answer at ``sentence[start:end]`` and the words before it, from the first telling one that the question has.

    An adapter has learned to go on, not back: from words of the question it comes to what follows them, while the
    beginning of a sentence is hard to recall from its end.
    """
    asked = {_bare(word) for word in question.split()}
    before = list(_WORD.finditer(sentence, 0, start))[-_LEAD:]
    # Words of a few letters are in every question.
    shared = (word for word in before if len(_bare(word[0])) >= _TELLING and _bare(word[0]) in asked)
    first = next(shared, next(iter(before[-_SHORT_LEAD:]), None))
    return sentence[start if first is None else first.start() : end]


def _bare(word: str) -> str:
    return word.strip(".,;:!?()\"'“”‘’").lower()
