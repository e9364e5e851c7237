"""Answers are scored as SQuAD scores them: case, punctuation, articles and spacing do not count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perk.scoring import exact_match, f1, normalise_answer


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Kitchen.", "kitchen"),
        ("  an   apple\n and a pear ", "apple and pear"),
        ("U.S.", "us"),
        ("Anthem", "anthem"),
        ("3,109,998", "3109998"),
        ("the", ""),
        ("Élan", "élan"),
    ],
)
def test_normalising_keeps_only_the_words(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


@given(st.text())
def test_an_answer_matches_itself_and_scores_one(text: str) -> None:
    assert exact_match(text, [text])
    assert f1(text, [text]) == 1.0


def test_any_accepted_answer_matches() -> None:
    assert exact_match("the garden", ["kitchen", "Garden"])
    assert not exact_match("the garden", ["kitchen", "garden shed"])
    assert not exact_match("garden", [])


def test_f1_counts_shared_words_with_their_multiplicity() -> None:
    assert f1("red red car", ["red car"]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1("blue boat", ["red car"]) == 0.0


def test_f1_takes_the_best_of_the_accepted_answers() -> None:
    assert f1("the old house", ["boat", "old house"]) == 1.0
    assert f1("house", []) == 0.0


def test_f1_without_words_is_all_or_nothing() -> None:
    assert f1("the", ["a"]) == 1.0
    assert f1("the", ["house"]) == 0.0
