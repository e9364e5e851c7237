"""A document becomes segments that make sense alone, and together hold every word once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from perk.errors import InvalidInput
from perk.segment import Segment
from perk.segments import join_passages, normalise, split_segments
from perk.settings import SegmentSettings

# Texts with everything the splitter looks at: lines, blank lines, sentence ends, quotes, capitals, other scripts.
WORDS = st.one_of(
    st.sampled_from(
        ["Mary", "went", "to", "the", "kitchen.", '"Where?"', "Dr.", "(Yes!)", "3109998", "—", "漢字", "é"]
    ),
    st.text(min_size=1, max_size=12),
)
SPACES = st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", " \n \n", "\t", ". ", "! "])
TEXTS = st.lists(st.tuples(WORDS, SPACES), max_size=60).map(lambda pairs: "".join(w + s for w, s in pairs))
MAX_TOKENS = st.integers(8, 40)


def _texts(text: str, tokenizer: PreTrainedTokenizerFast, **settings: object) -> list[str]:
    """Texts of a document's segments, without their prefixes."""
    segments = split_segments(normalise(text), tokenizer, SegmentSettings.model_validate(settings))
    return [str(tokenizer.decode(list(segment.ids[segment.prefix_tokens :]))) for segment in segments]


def test_hard_wrapped_prose_is_unwrapped(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prose = (
        "It is a truth universally acknowledged, that a single man\n"
        "in possession of a good fortune must want a wife. However little\n"
        "known the feelings of such a man may be, this truth is fixed.\n"
        "\n"
        "The train to the north leaves\n"
        "at seven in the morning."
    )
    assert _texts(prose, tiny_tokenizer) == [
        "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife. "
        "However little known the feelings of such a man may be, this truth is fixed.",
        "The train to the north leaves at seven in the morning.",
    ]


def test_a_record_is_a_segment(tiny_tokenizer: PreTrainedTokenizerFast, register: str) -> None:
    assert _texts(register, tiny_tokenizer) == register.split("\n")


def test_a_short_line_joins_the_next(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    sentence = "Mary went to the kitchen, and John moved to the garden of the office."
    assert _texts(f"I.\n{sentence}\nThe End", tiny_tokenizer) == [f"I.\n{sentence}", "The End"]


def test_a_long_paragraph_is_cut_between_sentences(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    sentences = [
        "Mary went to the kitchen.",
        '"Where is the apple?"',
        "John moved to the garden!",
        "(Sandra travelled back to the office.)",
    ]
    texts = _texts(" ".join(sentences), tiny_tokenizer, max_tokens=16)
    assert len(texts) > 1
    assert " ".join(texts) == " ".join(sentences)
    boundaries = [" ".join(sentences[:count]) for count in range(1, len(sentences) + 1)]
    for count in range(1, len(texts) + 1):
        assert " ".join(texts[:count]) in boundaries


def test_a_sentence_too_long_for_a_segment_is_cut(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    sentence = "kitchen garden " * 40
    texts = _texts(sentence, tiny_tokenizer, max_tokens=16)
    assert len(texts) > 4
    assert "".join(texts) == sentence.strip()


def test_each_prefix_carries_its_segments_running_number(
    tiny_tokenizer: PreTrainedTokenizerFast, register: str
) -> None:
    segments = split_segments(register, tiny_tokenizer, SegmentSettings(prefix="part {index} of many: "))
    prefixes = [str(tiny_tokenizer.decode(list(segment.ids[: segment.prefix_tokens]))) for segment in segments]
    assert prefixes == [f"part {number} of many: " for number in (1, 2, 3)]


def test_after_a_prefix_without_a_space_each_segment_begins_with_one(
    tiny_tokenizer: PreTrainedTokenizerFast, register: str
) -> None:
    """So the first token is the one that a question's support begins with."""
    sentences = ["Mary went to the kitchen.", "Then John moved to the garden."]
    for text, max_tokens, pieces in (
        (register, 128, register.split("\n")),
        (" ".join(sentences), 12, sentences),
    ):
        assert _texts(text, tiny_tokenizer, prefix="Support: ", max_tokens=max_tokens) == pieces
        led = [f" {piece}" for piece in pieces]
        assert _texts(text, tiny_tokenizer, prefix="Support:", max_tokens=max_tokens) == led


def test_each_segment_ends_as_it_is_told_to(tiny_tokenizer: PreTrainedTokenizerFast, register: str) -> None:
    assert _texts(register, tiny_tokenizer, end="\n") == [f"{record}\n" for record in register.split("\n")]
    assert "end" not in SegmentSettings().model_dump(), "fingerprints of checkpoints without it stay"


def test_a_prefix_may_be_empty(tiny_tokenizer: PreTrainedTokenizerFast, register: str) -> None:
    segments = split_segments(register, tiny_tokenizer, SegmentSettings(prefix=""))
    assert [segment.prefix_tokens for segment in segments] == [0, 0, 0]


def test_the_first_token_carries_loss_only_after_a_prefix() -> None:
    assert Segment(ids=(5, 6, 7, 8), prefix_tokens=2).loss_tokens == 2
    assert Segment(ids=(5, 6, 7, 8), prefix_tokens=0).loss_tokens == 3
    assert Segment(ids=(5,), prefix_tokens=0).loss_tokens == 0


@given(text=TEXTS, max_tokens=MAX_TOKENS, prefix=st.sampled_from(["doc_{index}: ", "doc_{index}:"]))
def test_every_character_is_kept_once_and_in_order(
    text: str, max_tokens: int, prefix: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    try:
        normal = normalise(text)
    except InvalidInput:
        return
    segments = split_segments(normal, tiny_tokenizer, SegmentSettings(max_tokens=max_tokens, prefix=prefix))
    ids = [token for segment in segments for token in segment.ids[segment.prefix_tokens :]]
    assert _without_space(str(tiny_tokenizer.decode(ids))) == _without_space(normal)
    assert all(1 <= len(segment.ids) - segment.prefix_tokens <= max_tokens for segment in segments)


@given(text=TEXTS)
def test_every_word_is_kept_once_and_in_order(text: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    try:
        normal = normalise(text)
    except InvalidInput:
        return
    # Nothing is so long that a word would have to be cut.
    texts = _texts(normal, tiny_tokenizer, max_tokens=10_000)
    assert " ".join(texts).split() == normal.split()


def _without_space(text: str) -> str:
    return "".join(text.split())


@given(text=TEXTS)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    try:
        once = normalise(text)
    except InvalidInput:
        return
    assert normalise(once) == once


def test_what_looks_the_same_is_the_same() -> None:
    assert normalise("\ufeff café".strip("\ufeff")) == normalise("cafe\u0301\r\n")
    assert normalise("a\r\nb\rc\n") == "a\nb\nc"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", "an empty string"),
        (" \n\t\r\n\u00a0 ", "no visible character"),
        ("Mary\x00John", "a NUL character"),
        ("\x00", "a NUL character"),
        ("Mary \ud83d", "half of a surrogate pair"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_by_name(text: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        normalise(text)
    assert caught.value.field == "text"
    assert caught.value.value == value
    assert str(caught.value) == f"text: got {value}, expected {caught.value.limit}"


def test_passages_are_paragraphs_of_one_document(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    passages = ["Mary went to the kitchen and then to the office.", "and John moved to the garden and the hallway."]
    assert _texts(join_passages(passages), tiny_tokenizer) == passages
