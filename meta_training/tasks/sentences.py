"""Sentences of a passage: where an answer stands, as its support."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perk.sentences import sentences

__all__ = ["sentence_at", "split_title", "supporting_sentence"]

_TITLE = re.compile(r"([^.]{2,60})\. ")


def split_title(passage: str) -> tuple[str, str]:
    """The title that a passage of an encyclopedia begins with, up to the first full stop, and the rest; "" for none."""
    title = _TITLE.match(passage)
    return (title[1], passage[title.end() :]) if title else ("", passage)


def supporting_sentence(passage: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The first sentence with the first answer that the passage holds; nothing where it holds none literally.

    A title comes first, and says less about its own words than a sentence that has them too.
    """
    title, _ = split_title(passage)
    found = _sentences(passage)
    bodies = [sentence.removeprefix(f"{title}. ") if title else sentence for sentence in found]
    for texts in (bodies, found):
        for answer in answers:
            for text, sentence in zip(texts, found, strict=True):
                if answer.lower() in text.lower():
                    return (sentence,)
    return ()


def sentence_at(passage: str, start: int) -> tuple[str, ...]:
    """The sentence that holds the character at `start`; nothing where there is no such character."""
    end = 0
    for sentence in _sentences(passage):
        begin = passage.index(sentence, end)
        end = begin + len(sentence)
        if begin <= start < end:
            return (sentence,)
    return ()


def _sentences(passage: str) -> list[str]:
    return [sentence for line in passage.splitlines() for sentence in sentences(line)]
