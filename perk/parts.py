"""Paragraphs of one text as numbered parts, which its adapter recalls by their numbers.

The paragraphs of an article are about one thing, which only the first one names as a question does: asked about it, an
adapter recalls that one, whatever was asked. So each is read behind its number and their count, and for a question all
of them can be recalled (`perk.part_recall`), to choose the one that it is about (`perk.part_choice`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from perk.sentences import sentences

__all__ = ["are_paragraphs", "part_count", "part_name", "part_start", "to_one_line", "told_apart"]

# More would take longer to recall than a question should take.
_MOST_PARTS = 192
# What has so many sentences is a paragraph; a record, an entry or a heading is one.
_SENTENCES = 2
# Share of a text's pieces that are paragraphs, if it is one of paragraphs.
_LEAST_SHARE = 0.75

_COUNT = re.compile(r"Part 1 of (\d{1,3}):")
_LINE_BREAK = re.compile(r"([\w)\]])?\s*\n\s*")


def are_paragraphs(pieces: Sequence[str]) -> bool:
    """Whether the pieces of a text are to be read as parts: not too many, and most of them paragraphs."""
    paragraphs = sum(len(sentences(piece, shortest=0)) >= _SENTENCES for piece in pieces)
    return 1 <= len(pieces) <= _MOST_PARTS and paragraphs >= _LEAST_SHARE * len(pieces)


def part_name(number: int, count: int) -> str:
    """What stands before a part, from 1."""
    return f"{part_start(number)} {count}:"


def part_start(number: int) -> str:
    """The same without the count, which is to be recalled."""
    return f"Part {number} of"


def part_count(name: str) -> int | None:
    """Of how many parts the name of the first one tells; None where it is no such name."""
    named = _COUNT.fullmatch(name)
    count = int(named[1]) if named else 0
    return count if 1 <= count <= _MOST_PARTS else None


def to_one_line(piece: str) -> str:
    """A piece without line breaks, each of which ends a part where it is recalled: a heading becomes a sentence."""
    return _LINE_BREAK.sub(lambda found: f"{found[1]}. " if found[1] else " ", piece)


def told_apart(parts: Sequence[str]) -> list[str]:
    """Parts as a reader reads them to choose one: behind the first sentence of all, which names what they are about."""
    first = sentences(parts[0], shortest=0)[0]
    return [parts[0], *(f"{first} {part}" for part in parts[1:])]
