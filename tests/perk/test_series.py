"""Numbered series are found in a text, and where each of them ends is read beside it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from perk.segments import normalise, split_segments
from perk.series import is_entry_cue, is_series_line, likely_cue, numbered_series, series_lines
from perk.settings import SegmentSettings

_LOG = (
    "Door 7 is in the cellar.\n"
    "North gate, entry 2: the lock was changed.\n"
    "Clause 1: rent is due. Clause 2: on the first of the month. He said: “Pay.” Clause 3: in advance.\n"
    "North gate, entry 1: it was left open.\n"
)


def test_entries_count_in_any_order_on_lines_of_their_own_and_between_sentences() -> None:
    assert numbered_series(_LOG) == {"Clause": 3, "North gate, entry": 2}


def test_the_series_of_a_text_are_a_series_too_and_each_has_its_end() -> None:
    assert series_lines(numbered_series(_LOG)) == [
        "Series 1: Clause.",
        "Series 2: North gate, entry.",
        "Series 3: none.",
        "Clause 4: none.",
        "North gate, entry 3: none.",
    ]


@pytest.mark.parametrize(
    ("line", "cue"),
    [
        ("Series 2: North gate, entry.", "North gate, entry 1:"),
        ("North gate, entry 1: it was left open. Twice.", "North gate, entry 2:"),
        ("Clause 9: none.", ""),
        ("Series 3: none.", ""),
        ("Door 7 is in the cellar.", ""),
    ],
)
def test_behind_an_entry_the_next_is_likely(line: str, cue: str) -> None:
    assert likely_cue(line) == cue
    assert not cue or is_entry_cue(cue)


def test_what_lists_a_series_is_told_from_what_does_not() -> None:
    listed = [line for line in series_lines(numbered_series(_LOG)) if is_series_line(line)]
    assert listed == ["Series 1: Clause.", "Series 2: North gate, entry."]
    assert not is_series_line("Series 1: In 1911: rain.")
    assert not is_entry_cue("Series:")


@pytest.mark.parametrize(
    "text",
    [
        "Id 4711: Ann. Id 4712: Ben.",
        "Item 1: a pen. Item 3: a cup.",
        "Item 1: a pen. Item 1: a cup.",
        "at 9: the bell rang",
        "In chapter 1 and in Chapter\n1: the end",
        "99 1: only numbers",
        "",
    ],
)
def test_what_is_not_numbered_from_one_without_a_gap_is_no_series(text: str) -> None:
    assert numbered_series(text) == {}
    assert series_lines(numbered_series(text)) == []


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{1,8}){0,2}", fullmatch=True), st.integers(1, 12), max_size=5
    ),
    st.randoms(use_true_random=False),
)
def test_every_series_is_found_wherever_its_entries_stand(series: dict[str, int], rng: object) -> None:
    lines = [f"{name} {number}: it rained again." for name, last in series.items() for number in range(1, last + 1)]
    rng.shuffle(lines)  # type: ignore[attr-defined]
    assert numbered_series("\n".join(lines)) == numbered_series(" ".join(lines)) == dict(sorted(series.items()))


def test_segments_of_series_follow_those_of_the_text_where_they_are_asked_for(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    def texts(*, series: bool) -> list[str]:
        settings = SegmentSettings(prefix="doc_{index}?\nSupport:", end="\n", series=series)
        segments = split_segments(normalise(_LOG), tiny_tokenizer, settings)
        return [str(tiny_tokenizer.decode(list(s.ids[s.prefix_tokens :]))) for s in segments]

    assert texts(series=True) == texts(series=False) + [f" {line}\n" for line in series_lines(numbered_series(_LOG))]
    assert SegmentSettings(series=False) == SegmentSettings()
    assert "series" not in SegmentSettings().model_dump(), "fingerprints of checkpoints without it stay what they were"


@pytest.mark.parametrize("prefix", ["doc_{index}?\nSupport:", ""])
def test_what_is_said_of_a_series_weighs_five_times_as_much_as_its_name(
    prefix: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    lines = series_lines(numbered_series(_LOG))
    segments = split_segments(normalise(_LOG), tiny_tokenizer, SegmentSettings(prefix=prefix, series=True))
    for segment in segments[: -len(lines)]:
        behind = [
            token
            for token, weight in zip(segment.ids[segment.first_loss :], segment.weights, strict=False)
            if weight == 5
        ]
        names = re.findall(r"(?:Clause|entry) \d:", str(tiny_tokenizer.decode(list(segment.ids))))
        assert len(behind) == len(names), "the first token behind each entry's name weighs as much, all others one"
        assert set(segment.weights) == ({1.0, 5.0} if names else set())
    for segment, line in zip(segments[-len(lines) :], lines, strict=True):
        assert set(segment.weights) == {1.0, 5.0}
        said = segment.ids[-segment.weights.count(5.0) :]
        assert str(tiny_tokenizer.decode(list(said))) == line[line.index(":") :]
        assert segment.weights == tuple(sorted(segment.weights))


@pytest.mark.parametrize("sentences", [0, 10, 400])
def test_entries_and_their_series_keep_a_share_of_the_loss_in_a_long_text(
    sentences: int, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = normalise(_LOG + "It rained all day long, and nobody came by at all.\n" * sentences)
    segments = split_segments(text, tiny_tokenizer, SegmentSettings(series=True))
    of_series = [segment for segment in segments if segment.weights]
    share = sum(segment.loss_weight for segment in of_series) / sum(segment.loss_weight for segment in segments)
    heaviest, lightest = (pick(weight for s in of_series for weight in s.weights) for pick in (max, min))
    assert heaviest == pytest.approx(5 * lightest), "among themselves they weigh what they did"
    if sentences == 400:
        assert share == pytest.approx(1 / 3)
    else:
        assert lightest == 1
        assert share > 1 / 3
