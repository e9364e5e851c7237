"""Numbered series of a document, and the lines that list them and say where they end.

A log, a contract or a list of minutes numbers its entries ("Door 7 Entry 12: ..."). An adapter recalls any of them by
its number, but that there is no thirteenth stands nowhere: memory of what is there says nothing of what is not. So each
series gets a line behind its last entry, and the series of a document are a numbered series too: from there all entries
can be recalled one after the other (`perk.readers`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "NOTHING",
    "entry_at_end",
    "is_entry_cue",
    "is_series_line",
    "likely_cue",
    "no_entry",
    "numbered_series",
    "series_line",
    "series_lines",
]

# What stands behind a name and a number that no entry has.
NOTHING = " none."

# An entry begins a line or a sentence: a few words, a number, a colon.
_CUE = re.compile(r"([^\W\d_][^\n:.!?]{0,60}?) (\d{1,5}):")
_ENTRY = re.compile(rf"""(?:^|(?<=[.!?]\s)|(?<=[.!?]["'”’)\]_]\s)){_CUE.pattern}""", re.MULTILINE)
_LISTED = re.compile(r"Series \d{1,5}: (?!none\.)([^\W\d_][^\n:.!?]{0,60})\.")


def numbered_series(text: str) -> dict[str, int]:
    """Names of the series whose entries bear the numbers from 1 to n, each once, and n; by name.

    What counts otherwise (identity numbers, years, numbers that are missing) is no series.
    """
    numbers: dict[str, list[int]] = {}
    for name, number in _ENTRY.findall(text):
        numbers.setdefault(name, []).append(int(number))
    return {
        name: len(found) for name, found in sorted(numbers.items()) if sorted(found) == list(range(1, len(found) + 1))
    }


def series_lines(series: Mapping[str, int]) -> list[str]:
    """What a text does not say of its series: which there are, and that none, that list too, has a further entry.

    Args:
        series: of the text, as `numbered_series` has them.
    """
    if not series:
        return []
    return [
        *(series_line(number, name) for number, name in enumerate(series, start=1)),
        no_entry("Series", len(series) + 1),
        *(no_entry(name, last + 1) for name, last in series.items()),
    ]


def series_line(number: int, name: str) -> str:
    """The line that lists a series."""
    return f"Series {number}: {name}."


def no_entry(name: str, number: int) -> str:
    """The line that says that a series ends before a number."""
    return f"{name} {number}:{NOTHING}"


def entry_at_end(text: str) -> str | None:
    """The series of which a text ends with the name and number of an entry; None where it does not."""
    entries = list(_ENTRY.finditer(text))
    return str(entries[-1][1]) if entries and entries[-1].end() == len(text) else None


def is_series_line(line: str) -> bool:
    """Whether a line lists a series, as opposed to what comes of recalling one from a text that has none."""
    return _LISTED.fullmatch(line) is not None


def is_entry_cue(line: str) -> bool:
    """Whether what there is of a line is the name and number of an entry, by which the rest of it can be recalled."""
    return _CUE.fullmatch(line) is not None


def likely_cue(line: str) -> str:
    """By which entry recall goes on behind a line, as a rule: the first of the series it lists, or the next entry."""
    if listed := _LISTED.fullmatch(line):
        return f"{listed[1]} 1:"
    entry = _CUE.match(line)
    if entry is None or line == no_entry(entry[1], int(entry[2])):
        return ""
    return f"{entry[1]} {int(entry[2]) + 1}:"
