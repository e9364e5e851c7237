"""Sentences of a passage: where an answer stands, as its support."""

from __future__ import annotations

import re
from collections.abc import Sequence

from perk.sentences import sentences

__all__ = ["passage_sentences", "read_up_to", "sentence_at", "split_title", "supporting_sentence"]

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


def read_up_to(passage: str, support: Sequence[str]) -> tuple[str, ...]:
    """The passage from where each supporting sentence's line begins to the end of the sentence.

    What was read is recalled from its beginning: a question finds that of a paragraph, which names what it is about,
    and each sentence follows from the one before. Far into a long line, which segments may have cut, the sentence
    stands alone.
    """
    return tuple(_read_up_to(passage, sentence) for sentence in support)


def _read_up_to(passage: str, sentence: str) -> str:
    start = passage.index(sentence)
    end = start + len(sentence)
    line = passage.rfind("\n", 0, start) + 1
    return passage[line if end - line <= _LONGEST else start : end]
