"""Cues ask for each sentence of prose by words of its own, in the prompt's template, in as many ways as set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from perk.cues import LINE_WORDS, SENTENCE_WORDS, cue_segments
from perk.segment import Segment
from perk.segments import document_segments, normalise, split_segments
from perk.settings import InnerSettings, PerkSettings, SegmentSettings, TemplateSettings

PROSE = [
    ["Corrin Lighthouse stands on a long reef of black rock.", "It was built by Agnes Tolliver in the spring of 1871."],
    ["The keepers of the lamp lived in a house of stone.", "Two ponies carried their oil up from the harbour."],
]
TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:")
TURNS = 5
RARE = ("Keeper", "lantern", "tower")


def _cues(
    tokenizer: PreTrainedTokenizerFast,
    prose: list[list[str]] = PROSE,
    templates: TemplateSettings = TEMPLATES,
    **options: Any,
) -> list[Segment]:
    return cue_segments(
        prose, tokenizer, templates, **{"turns": range(TURNS), "words": SENTENCE_WORDS, "max_tokens": 128, **options}
    )


def _texts(segment: Segment, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    ids = list(segment.ids)
    return str(tokenizer.decode(ids[: segment.prefix_tokens])), str(tokenizer.decode(ids[segment.prefix_tokens :]))


def test_each_sentence_is_asked_for_once_a_turn_by_words_of_its_paragraph(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    paragraph_of = {f" {sentence}": " ".join(paragraph) for paragraph in PROSE for sentence in paragraph}
    asked: Counter[tuple[tuple[int, ...] | None, str]] = Counter()
    for segment in _cues(tiny_tokenizer):
        prompt, sentence = _texts(segment, tiny_tokenizer)
        assert prompt.endswith("?\nSupport:")
        words = prompt.removesuffix("?\nSupport:").split()
        assert 3 <= len(words) <= 9
        assert all(word in paragraph_of[sentence] for word in words)
        assert sum(word in sentence for word in words) >= 3
        asked[segment.turns, sentence] += 1
    assert asked == Counter({((turn,), sentence): 1 for turn in range(TURNS) for sentence in paragraph_of})


def test_turns_ask_by_other_words_and_runs_by_the_same(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    segments = _cues(tiny_tokenizer)
    assert len({segment.ids[: segment.prefix_tokens] for segment in segments}) > 0.75 * len(segments)
    assert segments == _cues(tiny_tokenizer)


def test_words_that_no_other_sentence_has_are_drawn_first(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prose = [[f"Keeper{number} is a keeper of the lamp that stands upon the reef." for number in range(40)]]
    segments = _cues(tiny_tokenizer, prose, turns=range(1))
    named = sum(_texts(s, tiny_tokenizer)[1].split()[0] in _texts(s, tiny_tokenizer)[0].split() for s in segments)
    assert named > 0.6 * len(segments), "by chance less than half would have the one word that differs"


def test_few_turns_ask_by_most_words(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    lines = [[f"Keeper{number} left the lantern{number} in tower{number}."] for number in range(40)]
    asked: dict[str, list[str]] = {}
    for segment in _cues(tiny_tokenizer, lines, turns=range(2), words=(2, 2)):
        prompt, line = _texts(segment, tiny_tokenizer)
        asked.setdefault(line, []).extend(prompt.removesuffix("?\nSupport:").split())
    found = sum(f"{word}{number}" in cue for number, cue in enumerate(asked.values()) for word in RARE)
    assert found > 0.9 * len(RARE) * len(lines), "drawn anew each time, one in seven would never ask for its line"


def test_words_that_have_all_asked_often_are_drawn_by_chance_not_by_their_place(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    line = "one two six ten elf oak ivy fir."
    segments = _cues(tiny_tokenizer, [[line]], turns=range(64), words=(1, 1))
    words = [_texts(segment, tiny_tokenizer)[0].removesuffix("?\nSupport:") for segment in segments]
    assert set(Counter(words).values()) == {8}, "each as often as the others"
    assert words[48:56] != words[56:], "in the same order"


def test_a_sentence_of_one_word_is_asked_for_in_every_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    segments = _cues(tiny_tokenizer, [["ha " * 20 + "ha."]], turns=range(64), words=SENTENCE_WORDS)
    assert len(segments) == 64


def test_a_long_sentence_is_asked_for_piece_by_piece(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    long = " ".join(f"word{index}" for index in range(40)) + "."
    segments = [segment for segment in _cues(tiny_tokenizer, [[long]], max_tokens=16) if segment.turns == (0,)]
    texts = [_texts(segment, tiny_tokenizer) for segment in segments]
    assert "".join(text for _, text in texts) == f" {long}"
    assert all(len(s.ids) - s.prefix_tokens <= 16 for s in segments)


def test_without_a_support_a_sentence_follows_the_prompt_at_once(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    segment = _cues(tiny_tokenizer, templates=TemplateSettings())[0]
    prompt, sentence = _texts(segment, tiny_tokenizer)
    assert prompt.endswith("?\nAnswer:")
    assert sentence == PROSE[0][0]


def test_prose_is_asked_for_and_a_line_of_its_own_read_as_it_stands(
    tiny_tokenizer: PreTrainedTokenizerFast, register: str
) -> None:
    settings = PerkSettings(segments=SegmentSettings(cues=2), templates=TEMPLATES)
    text = normalise(f"{register}\n\n{' '.join(PROSE[0])}")
    segments = document_segments(text, tiny_tokenizer, settings)
    plain = [segment for segment in segments if segment.turns is None]
    assert plain == split_segments(register, tiny_tokenizer, settings.segments)
    assert [s for s in segments if s.turns is not None] == _cues(tiny_tokenizer, PROSE[:1], turns=range(2))


def test_a_line_of_its_own_is_asked_for_in_every_second_turn(
    tiny_tokenizer: PreTrainedTokenizerFast, register: str
) -> None:
    settings = PerkSettings(segments=SegmentSettings(line_cues=2), inner=InnerSettings(steps=4), templates=TEMPLATES)
    text = normalise(f"{' '.join(PROSE[0])}\n\n{register}")
    segments = document_segments(text, tiny_tokenizer, settings)
    standing = split_segments(register, tiny_tokenizer, settings.segments)
    assert [replace(s, turns=None) for s in segments if s.turns == (0, 2)] == standing
    lines = [[line] for line in register.splitlines()]
    asked = [s for s in segments if s.turns in ((1,), (3,))]
    assert asked == _cues(tiny_tokenizer, lines, turns=(1, 3), words=LINE_WORDS)
    assert all(1 <= len(_texts(s, tiny_tokenizer)[0].removesuffix("?\nSupport:").split()) <= 3 for s in asked)
    # Prose is read in every step, and numbered after the lines.
    (prose,) = (s for s in segments if s.turns is None)
    assert _texts(prose, tiny_tokenizer) == (f"doc_{len(standing) + 1}: ", " ".join(PROSE[0]))


def test_lines_and_prose_are_asked_for_in_the_same_turns(
    tiny_tokenizer: PreTrainedTokenizerFast, register: str
) -> None:
    settings = PerkSettings(
        segments=SegmentSettings(cues=4, line_cues=2), inner=InnerSettings(steps=4), templates=TEMPLATES
    )
    segments = document_segments(normalise(f"{' '.join(PROSE[0])}\n\n{register}"), tiny_tokenizer, settings)
    assert {s.turns for s in segments} == {(0, 2), (0,), (1,), (2,), (3,)}


def test_lines_cannot_be_asked_for_in_other_turns_than_prose() -> None:
    with pytest.raises(ValidationError, match="line_cues: half of cues where both are set, not 3 of 4"):
        SegmentSettings(cues=4, line_cues=3)


def test_a_heading_is_asked_for_with_the_sentence_below_it(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    settings = PerkSettings(segments=SegmentSettings(cues=1), templates=TEMPLATES)
    segments = document_segments(f"A.\n\n{' '.join(PROSE[0])}", tiny_tokenizer, settings)
    assert [_texts(segment, tiny_tokenizer)[1] for segment in segments] == [f" A.\n{PROSE[0][0]}", f" {PROSE[0][1]}"]


@pytest.mark.parametrize(
    ("steps", "asked", "turns"),
    [
        (2, {"cues": 9}, {(0,), (1,)}),
        (3, {"line_cues": 9}, {(0, 2), (1,), None}),
        (1, {"line_cues": 1}, {(0,), None}),
    ],
)
def test_no_more_turns_than_inner_steps(
    steps: int, asked: dict[str, int], turns: set[tuple[int, ...] | None], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = PerkSettings(segments=SegmentSettings(**asked), inner=InnerSettings(steps=steps), templates=TEMPLATES)
    prose = " ".join(PROSE[0])
    text = f"{prose}\n\n{PROSE[1][0]}" if "line_cues" in asked else prose
    assert {segment.turns for segment in document_segments(text, tiny_tokenizer, settings)} == turns


@given(text=st.text(min_size=1).filter(lambda text: text.strip() and "\x00" not in text))
def test_any_text_has_segments_and_every_turn_the_same_number_of_tokens(
    text: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = PerkSettings(segments=SegmentSettings(cues=3, max_tokens=8), templates=TEMPLATES)
    segments = document_segments(normalise(text), tiny_tokenizer, settings)
    assert segments
    tokens = Counter(dict.fromkeys(range(3), 0))
    for segment in segments:
        assert segment.prefix_tokens < len(segment.ids)
        for turn in segment.turns or ():
            tokens[turn] += segment.loss_tokens
    assert len(set(tokens.values())) == 1


@pytest.mark.parametrize("name", ["cues", "line_cues"])
@pytest.mark.parametrize("ways", [0, 4])
def test_settings_without_cues_say_nothing_of_them(ways: int, name: str) -> None:
    dumped = SegmentSettings(**{name: ways}).model_dump()
    assert dumped.get(name, 0) == ways
    assert (name in dumped) == (ways > 0)
