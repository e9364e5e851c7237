"""Lines that stand for something, and their sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perk.sentences import sentences, text_lines

_PARTS = st.sampled_from(["Mary went to the kitchen", "Dr", "It rained", "in 1871", "«x»", "a", ". ", "! ", "  ", "? "])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Corrin Lighthouse. It stands on a long reef of black rock. It is old.",
            ["Corrin Lighthouse. It stands on a long reef of black rock. It is old."],
        ),
        (
            "Corrin Lighthouse. It stands on a reef in the sea.  The tower is made of granite from the island itself.",
            [
                "Corrin Lighthouse. It stands on a reef in the sea.",
                "The tower is made of granite from the island itself.",
            ],
        ),
        ("It is old.", ["It is old."]),
        ("The first one ended here and there.  ", ["The first one ended here and there."]),
    ],
)
def test_a_short_sentence_joins_its_neighbour(line: str, expected: list[str]) -> None:
    assert sentences(line) == expected


def test_without_a_shortest_every_sentence_stands_alone() -> None:
    assert sentences('I. He said "No." Then (all at once) he left!', shortest=0) == [
        "I.",
        'He said "No."',
        "Then (all at once) he left!",
    ]


@given(parts=st.lists(_PARTS, min_size=1, max_size=12), shortest=st.integers(0, 60))
def test_sentences_hold_every_word_once_and_none_but_the_only_one_is_short(parts: list[str], shortest: int) -> None:
    line = "".join(parts)
    found = sentences(line, shortest=shortest)
    assert " ".join(found).split() == line.split()
    assert all(sentence in line for sentence in found)
    assert len(found) == 1 or all(len(sentence) >= shortest for sentence in found)


def test_a_paragraph_wrapped_by_width_is_one_line() -> None:
    assert text_lines("A man in want\nof a wife\n\nA record\nA fact") == [
        "A man in want of a wife",
        "A record",
        "A fact",
    ]
