"""Passages are found by the words that they share with a question."""

from __future__ import annotations

import pytest

from perk.passage_index import PassageIndex

_PASSAGES = ("The mill is old.", "Ann built the mill.", "A flood came.", "Ann and Bob met.")


@pytest.mark.parametrize(
    ("question", "count", "places"),
    [
        ("Who built it?", 1, [1]),
        ("FLOOD, or Bob?", 2, [2, 3]),
        ("Who built the mill?", 2, [0, 1]),
        ("Why?", 2, [0, 1]),
        ("", 9, [0, 1, 2, 3]),
    ],
    ids=["one word", "in order", "the more words the better", "none shared", "no more than there are"],
)
def test_passages_that_share_words_are_found(question: str, count: int, places: list[int]) -> None:
    assert PassageIndex(_PASSAGES).best(question, count) == places


@pytest.mark.parametrize(("passages", "place"), [(["…", "!"], 0), (["…", "Ann built it."], 1)])
def test_passages_may_have_no_words(passages: list[str], place: int) -> None:
    assert PassageIndex(passages).best("Who built it?", 1) == [place]
