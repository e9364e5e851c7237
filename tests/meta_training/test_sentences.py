"""Where in a passage an answer stands, and what leads to it."""

from __future__ import annotations

import pytest

from meta_training.tasks.sentences import split_title, supporting_sentence, words_up_to

SENTENCE = 'In the spring of 1871 its "great lamp" was lit by Agnes Tolliver, who had built it.'


@pytest.mark.parametrize(
    ("question", "support"),
    [
        ("Who was it that the lamp was lit by?", 'lamp" was lit by Agnes Tolliver'),
        ("Who made it GREAT, in spring?", 'spring of 1871 its "great lamp" was lit by Agnes Tolliver'),
        ("Who is she?", '"great lamp" was lit by Agnes Tolliver'),
    ],
)
def test_words_that_lead_to_an_answer_begin_where_the_question_tells_them(question: str, support: str) -> None:
    start = SENTENCE.index("Agnes")
    assert words_up_to(SENTENCE, start, start + len("Agnes Tolliver"), question) == support


def test_an_answer_that_comes_first_stands_alone() -> None:
    assert words_up_to(SENTENCE, 0, len("In the spring"), "When was the lamp lit?") == "In the spring"


def test_few_words_lead_to_an_answer_in_a_long_sentence() -> None:
    sentence = "lamp " + "and so on " * 20 + "until dawn"
    start = sentence.index("dawn")
    assert words_up_to(sentence, start, start + 4, "Until when did the lamp burn?") == "until dawn"
    assert words_up_to(sentence, start, start + 4, "When?") == "on and so on until dawn"


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
    passage = "It leaks. The lamp was lit in May. In May it rained."
    assert supporting_sentence(passage, ("june", "may")) == ("The lamp was lit in May.",)
    assert supporting_sentence(passage, ("june",)) == ()
