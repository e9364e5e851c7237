"""Where in a passage an answer stands."""

from __future__ import annotations

import pytest

from meta_training.tasks.sentences import sentence_at, split_title, supporting_sentence, whole_lines


@pytest.mark.parametrize(
    ("passage", "title", "text"),
    [
        ("Corrin Lighthouse. It is old. It leaks.", "Corrin Lighthouse", "It is old. It leaks."),
        ("One sentence only.", "", "One sentence only."),
        (f"{'Far too long ' * 6}. It is old.", "", f"{'Far too long ' * 6}. It is old."),
    ],
)
def test_a_title_ends_at_the_first_full_stop(passage: str, title: str, text: str) -> None:
    assert split_title(passage) == (title, text)


def test_the_first_sentence_with_the_first_answer_supports_it() -> None:
    leaks = "It leaks as soon as the rain comes from the west."
    lit = "The lamp was lit for the first time in a May of rain. In May it rained."
    passage = f"{leaks} {lit}"
    assert supporting_sentence(passage, ("june", "may")) == (lit,)
    assert supporting_sentence(passage, ("june",)) == ()


def test_a_title_supports_only_what_no_sentence_says() -> None:
    passage = (
        "Corrin Lighthouse. It stands at the end of a long reef. The Corrin lighthouse was lit in May of that year."
    )
    assert supporting_sentence(passage, ("Corrin",)) == ("The Corrin lighthouse was lit in May of that year.",)
    first = ("Corrin Lighthouse. It stands at the end of a long reef.",)
    assert supporting_sentence(passage, ("reef",)) == first, "a short title stands with the sentence after it"
    assert supporting_sentence(passage, ("Corrin Lighthouse.",)) == first
    title = "List of the keepers of Corrin Lighthouse."
    said = "The keepers of the lighthouse are named in the order of their years."
    assert supporting_sentence(f"{title} {said}", ("keepers",)) == (said,), "nor does a long one, which stands alone"


def test_the_sentence_at_a_place_is_found_among_equal_ones() -> None:
    lit, put_out = (f"The great lamp of the reef was {done} by the keeper." for done in ("lit", "put out"))
    passage = f"{lit}\n{lit}  {put_out}"
    assert sentence_at(passage, passage.rindex("lit")) == (lit,)
    assert sentence_at(passage, len(passage) - 1) == (put_out,)
    assert sentence_at(passage, len(passage)) == ()


def test_a_sentence_is_recalled_with_its_line() -> None:
    lit, put_out = (f"The great lamp of the reef was {done} by the keeper." for done in ("lit", "put out"))
    lines = (f"Corrin Lighthouse.  {lit} {put_out}", put_out, "It is old.")
    passage = "\n".join(lines)
    assert whole_lines(passage, (lit, "It is old.")) == (lines[0], lines[2])
    assert whole_lines(passage, (lit, put_out)) == (lines[0],)
    assert whole_lines(passage, ()) == ()
    assert whole_lines("It stands there. " * 80 + lit, (lit,)) == (lit,), "segments cut a line that is so long"
