"""Sentences of a passage: where an answer stands, as its support."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["sentence_at", "supporting_sentence"]

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"”’')]*(?=\s)|$)", re.DOTALL)


def supporting_sentence(passage: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The first sentence with the first answer that the passage holds; nothing where it holds none literally."""
    sentences = [match[0].strip() for match in _SENTENCE.finditer(passage)]
    found = (sentence for answer in answers for sentence in sentences if answer.lower() in sentence.lower())
    return tuple(sentence for sentence in [next(found, "")] if sentence)


def sentence_at(passage: str, start: int) -> tuple[str, ...]:
    """The sentence that holds the character at `start`; nothing where there is no such character."""
    return tuple(match[0].strip() for match in _SENTENCE.finditer(passage) if match.start() <= start < match.end())
