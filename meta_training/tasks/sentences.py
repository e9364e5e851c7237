"""Sentences of a passage: where an answer stands, as its support."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["sentence_at", "sentences", "split_title", "supporting_sentence"]

_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"”’')]*(?=\s)|$)", re.DOTALL)

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
