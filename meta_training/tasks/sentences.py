"""Sentences of a passage: where an answer stands, as its support."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perk.sentences import sentences

__all__ = ["passage_sentences", "sentence_at", "split_title", "supporting_sentence", "whole_lines"]

# Characters of a line that surely fit into one segment of 256 tokens.
_LONGEST = 900
_TITLE = re.compile(r"([^.]{2,60})\. ")


def split_title(passage: str) -> tuple[str, str]:
    """The title that a passage of an encyclopedia begins with, up to the first full stop, and the rest; "" for none."""
    title = _TITLE.match(passage)
    return (title[1], passage[title.end() :]) if title else ("", passage)


def passage_sentences(passage: str) -> list[tuple[str, int]]:
    """Sentences of a passage, in order, each with the place where it begins to say something: behind a title."""
    title = f"{split_title(passage)[0]}."
    found = (sentence for line in passage.splitlines() for sentence in sentences(line))
    return [(sentence, len(title) if title != "." and sentence.startswith(title) else 0) for sentence in found]


def supporting_sentence(passage: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The first sentence with the first answer that the passage holds; nothing where it holds none literally.

    A title comes first, and says less about its own words than a sentence that has them too.
    """
    found = passage_sentences(passage)
    for with_title in (False, True):
        for answer in answers:
            for sentence, start in found:
                if answer.lower() in sentence[0 if with_title else start :].lower():
                    return (sentence,)
    return ()


def sentence_at(passage: str, start: int) -> tuple[str, ...]:
    """The sentence that holds the character at `start`; nothing where there is no such character."""
    end = 0
    for sentence, _ in passage_sentences(passage):
        begin = passage.index(sentence, end)
        end = begin + len(sentence)
        if begin <= start < end:
            return (sentence,)
    return ()


def whole_lines(passage: str, support: Sequence[str]) -> tuple[str, ...]:
    """The lines of a passage that hold the supporting sentences.

    What was read as one is recalled as one: a question finds the beginning of a paragraph, which names what it is
    about, each sentence follows from the one before, and where to stop is told by nothing but the end. Of a line that
    is too long to be one segment the sentence stands alone.
    """
    return tuple(dict.fromkeys(_whole_line(passage, sentence) for sentence in support))


def _whole_line(passage: str, sentence: str) -> str:
    line = next((line for line in passage.splitlines() if sentence in line), sentence)
    return line if len(line) <= _LONGEST else sentence
