"""Numbered series of a document, and the lines that say where they end.

A log, a contract or a list of minutes numbers its entries ("Door 7 Entry 12: ..."). An adapter recalls any of them by
its number, but that there is no thirteenth stands nowhere: memory of what is there says nothing of what is not. So each
series gets a line behind its last entry, and the series of a document are a numbered series too, from which all can be
recalled one after the other.
"""

from __future__ import annotations

import re

__all__ = ["numbered_series", "series_lines"]

# An entry begins a line or a sentence: a few words, a number, a colon.
_ENTRY = re.compile(r"""(?:^|(?<=[.!?]\s)|(?<=[.!?]["'”’)\]_]\s))([^\W\d_][^\n:.!?]{0,60}?) (\d{1,5}):""", re.MULTILINE)


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


def series_lines(text: str) -> list[str]:
    """What a text does not say of its series: which there are, and that none, that list too, has a further entry."""
    series = numbered_series(text)
    if not series:
        return []
    return [
        *(f"Series {number}: {name}." for number, name in enumerate(series, start=1)),
        f"Series {len(series) + 1}: none.",
        *(f"{name} {last + 1}: none." for name, last in series.items()),
    ]
