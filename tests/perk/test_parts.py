"""Paragraphs are read as numbered parts, recalled side by side, and the one that the question goes with is read."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from perk import AnswerRequest, PerkModel
from perk.answer_row import AnswerDelta, AnswerRow
from perk.part_choice import PartChoice
from perk.part_recital import PartRecital
from perk.parts import are_paragraphs, part_count, part_name, to_one_line, told_apart
from perk.readers import Readers
from perk.recalled_parts import RecalledParts
from perk.segments import normalise, split_segments
from perk.settings import SegmentSettings, TemplateSettings
from perk.token_track import TokenTrack

_SEGMENTS = SegmentSettings(max_tokens=40, prefix="doc_{index}?\nSupport:", end="\n", parts=True)
_TEMPLATES = TemplateSettings(
    prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}", max_support_tokens=200
)
_QUESTION = "Who built it?"
_ARTICLE = "The Mill\n\nIt stands by a river. It is old.\n\nAnn built it. She was a mason."


def _texts(text: str, tokenizer: PreTrainedTokenizerFast, settings: SegmentSettings = _SEGMENTS) -> list[str]:
    segments = split_segments(normalise(text), tokenizer, settings)
    return [str(tokenizer.decode(list(segment.ids[segment.prefix_tokens :]))) for segment in segments]


def test_each_paragraph_stands_behind_its_number_and_their_count(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    assert _texts(_ARTICLE, tiny_tokenizer) == [
        " Part 1 of 2: The Mill. It stands by a river. It is old.\n",
        " Part 2 of 2: Ann built it. She was a mason.\n",
    ]
    assert "parts" not in SegmentSettings().model_dump(), "fingerprints of checkpoints without it stay what they were"


@pytest.mark.parametrize(
    "text",
    [
        "Ann built it.",
        "Student <1>, Name: Ann, Grade: 4\nStudent <2>, Name: Bob, Grade: 3\nStudent <3>, Name: Cy, Grade: 2",
        "Ann Event 1: Ann went out. It rained.\nAnn Event 2: Ann came in. It was late.",
        "\n\n".join(["Ann built it. She was a mason."] * 193),
    ],
    ids=["one sentence", "records", "a numbered series", "too many"],
)
def test_other_texts_are_read_as_they_are(text: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    plain = _SEGMENTS.model_copy(update={"parts": False})
    assert _texts(text, tiny_tokenizer) == _texts(text, tiny_tokenizer, plain)


def test_a_text_of_one_paragraph_is_one_part(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    paragraph = "Ann built it. She was a mason."
    assert _texts(paragraph, tiny_tokenizer) == [f" Part 1 of 1: {paragraph}\n"]


def test_a_quarter_of_the_pieces_may_be_no_paragraphs() -> None:
    paragraph, line = "Ann built it. She was a mason.", "Ann built it."
    assert are_paragraphs([paragraph] * 3 + [line])
    assert not are_paragraphs([paragraph] * 5 + [line] * 2)


@pytest.mark.parametrize(
    ("piece", "line"),
    [("The Mill\nIt is old.", "The Mill. It is old."), ("He said:\n“Go.”\nShe went.", "He said: “Go.” She went.")],
)
def test_a_part_is_one_line(piece: str, line: str) -> None:
    assert to_one_line(piece) == line


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Part 1 of 192:", 192),
        ("Part 1 of 96:", 96),
        ("Part 1 of 1:", 1),
        ("Part 1 of 0:", None),
        ("Part 1 of 193:", None),
    ],
)
def test_the_first_name_tells_how_many_there_are(name: str, count: int | None) -> None:
    assert part_count(name) == count
    assert count is None or part_name(1, count) == name


class _Script:
    """A row without a reader of entries that is told what the model says."""

    def __init__(self, model: PerkModel, reader: torch.Tensor | None = None, *, readers: Readers | None = None) -> None:
        self.base = model.base
        self.readers = readers or Readers(_SEGMENTS, of_parts=reader)
        request = AnswerRequest(_QUESTION, adapter=torch.ones(model.adapter_size), max_tokens=9)
        self.row = AnswerRow(0, request, _TEMPLATES, model.base, self.readers)
        self.deltas: list[AnswerDelta] = []

    def read(self, track: TokenTrack) -> str:
        """What the model reads next of a track."""
        text = str(self.base.tokenizer.decode(track.unread))
        track.cache.length += len(track.unread)
        return text

    def say(self, text: str | None, *, sure: bool = True) -> None:
        """Write a text, or the end token, on the first track; `sure`: with all of the probability."""
        base = self.base
        ids = [base.eos_id] if text is None else base.tokenizer.encode(text, add_special_tokens=False)
        for token in ids:
            track = self.row.tracks[0]
            if track.unread:
                self.read(track)
            logits = torch.nn.functional.one_hot(torch.tensor([token]), len(base.tokenizer)).float()
            self.deltas += self.row.take_all(track, logits * (100 if sure else 1))

    def doubt(self, *tokens: str) -> None:
        """Let the model find some tokens about as likely as one another on the first track, the first a little more."""
        track = self.row.tracks[0]
        if track.unread:
            self.read(track)
        logits = torch.zeros(1, len(self.base.tokenizer))
        for place, token in enumerate(tokens):
            (only,) = self.base.tokenizer.encode(token, add_special_tokens=False)
            logits[0, only] = 50 - place / 10
        self.row.take_all(track, logits)

    def ask(self, likelihood: float) -> None:
        """Let the model find every token of the question as likely behind the first track."""
        track = self.row.tracks[0]
        logits = torch.zeros(1 + len(track.draft), len(self.base.tokenizer))
        logits[torch.arange(len(track.draft)), track.draft] = likelihood
        self.row.take_all(track, logits)

    def told(self) -> list[str]:
        """What the model reads next of all tracks."""
        return [self.read(track) for track in self.row.tracks]


@pytest.fixture
def script(make_model: Callable[..., PerkModel]) -> _Script:
    return _Script(make_model())


def test_parts_are_recalled_by_their_numbers_and_the_one_that_was_meant_is_read(script: _Script) -> None:
    assert script.told() == ["doc_1?\nSupport: Part 1 of"]
    script.say(" 3:")
    assert script.told() == [f"doc_{number}?\nSupport: Part {number} of 3:" for number in (1, 2, 3)]
    script.say(" The mill is old.\n")
    script.say(" Ann built it.")
    script.say(None)
    script.say(" It burned down.\n")
    said = [" The mill is old.", " Ann built it.", " It burned down."]
    read = [f"doc_{number}?\nSupport: Part {number} of 3:{text}" for number, text in enumerate(said, start=1)]
    assert script.told() == [f"{text}\nQuestion: {_QUESTION}" for text in read]
    for likelihood in (1.0, 3.0, 2.0):
        script.ask(likelihood)
    assert script.told() == [f"{_QUESTION}\nSupport: Ann built it.\nAnswer:"]
    script.say(" Ann")
    script.say(None)
    assert "".join(delta.text for delta in script.deltas) == "Ann"
    assert script.deltas[-1].support == "Ann built it."
    assert script.row.finished


def test_a_part_is_recalled_as_the_segment_that_it_was_read_as(make_model: Callable[..., PerkModel]) -> None:
    model = make_model(segments=_SEGMENTS)
    text = "\n\n".join(["Ann built it. She was a mason."] * 12)
    read = [str(model.base.tokenizer.decode(list(segment.ids))) for segment in model.split(text)]
    recital = PartRecital(torch.ones(model.adapter_size), _SEGMENTS, model.base)
    _recite(recital, model.base.tokenizer, " 12:")
    begun = [str(model.base.tokenizer.decode(track.unread)) for track in recital.tracks]
    assert len(begun) == len(read) == 12
    assert all(part.startswith(start) for part, start in zip(read, begun, strict=True))


def test_the_part_is_read_by_its_reader_where_there_is_one(make_model: Callable[..., PerkModel]) -> None:
    model = make_model()
    reader = torch.zeros(model.adapter_size)
    script = _Script(model, reader)
    script.say(" 2:")
    script.say(" The mill is old.\n")
    script.say(" Ann built it.\n")
    assert all(track.adapter is reader for track in script.row.tracks)
    read = ["The mill is old.", "The mill is old. Ann built it."]
    assert script.told() == [f"{text}\nQuestion: {_QUESTION}" for text in read]
    for likelihood in (1.0, 3.0):
        script.ask(likelihood)
    assert [track.adapter for track in script.row.tracks] == [reader]
    assert script.told() == [f"{_QUESTION}\nSupport: Ann built it.\nAnswer:"]
    script.say(" Ann")
    script.say(None)
    assert "".join(delta.text for delta in script.deltas) == "Ann"
    assert (script.row.finished, script.deltas[-1].support) == (True, "Ann built it.")


def test_where_nothing_is_recalled_the_document_answers_and_not_its_reader(
    make_model: Callable[..., PerkModel],
) -> None:
    model = make_model()
    script = _Script(model, torch.zeros(model.adapter_size))
    script.say(" the", sure=False)
    assert [track.adapter for track in script.row.tracks] == [script.row.request.adapter]


def test_where_memory_gives_out_the_next_likeliest_token_is_tried_once(script: _Script) -> None:
    script.say(" 2:")
    script.say(" An")
    for _ in range(3):
        script.doubt("d", "n", "y")
    script.say(" built it.\n")
    script.say(" Bob slept.")
    for _ in range(2):
        script.doubt("d", "n", "y")
    script.say(" He was tired, and long into the day.")
    for _ in range(6):
        script.doubt("x", "y", "z")
    assert script.told() == [
        f"doc_1?\nSupport: Part 1 of 2: Ann built it.\nQuestion: {_QUESTION}",
        f"doc_2?\nSupport: Part 2 of 2: Bob slept.dd He was tired, and long into the day.\nQuestion: {_QUESTION}",
    ], "two doubts are no matter"


@pytest.mark.parametrize(("said", "sure"), [(" ", False), (" the", True), (" 0:", True), (" 193:", True)])
def test_a_document_without_parts_answers_by_itself(script: _Script, said: str, sure: bool) -> None:
    script.say(said, sure=sure)
    while script.row.tracks[0].prompt != script.row.prompt:
        script.say("x")
    assert script.told() == [f"{_QUESTION}\nSupport:"]


def test_parts_of_which_nothing_is_left_are_none(script: _Script) -> None:
    script.say(" 2:")
    script.say(None)
    script.say(None)
    assert script.told() == [f"{_QUESTION}\nSupport:"]


def test_without_an_adapter_nothing_is_recalled(make_model: Callable[..., PerkModel]) -> None:
    model = make_model()
    row = AnswerRow(0, AnswerRequest(_QUESTION), _TEMPLATES, model.base, Readers(_SEGMENTS))
    assert [track.adapter for track in row.tracks] == [None]
    assert row.tracks[0].prompt == row.prompt


def test_a_second_question_has_the_parts_that_the_first_one_recalled(make_model: Callable[..., PerkModel]) -> None:
    model = make_model()
    readers = Readers(_SEGMENTS)
    first = _Script(model, readers=readers)
    for text in (" 2:", " The mill is old.\n", " Ann built it.\n"):
        first.say(text)
    asked = first.told()
    request = replace(first.row.request, question="How old is it?")
    second = AnswerRow(1, request, _TEMPLATES, model.base, readers)
    expected = [text.replace(_QUESTION, "How old is it?") for text in asked]
    assert [str(model.base.tokenizer.decode(track.unread)) for track in second.tracks] == expected
    other = AnswerRow(2, replace(request, adapter=torch.ones(model.adapter_size)), _TEMPLATES, model.base, readers)
    assert [track.prompt for track in other.tracks] == [_Script(model).row.tracks[0].prompt], "of another document"


def test_what_was_recalled_goes_with_its_adapter() -> None:
    recalled, adapter = RecalledParts(), torch.ones(3)
    recalled.put(adapter, ("Ann built it.",))
    assert (recalled.get(adapter), recalled.get(torch.ones(3))) == (("Ann built it.",), None)
    assert recalled.count == 1
    del adapter
    assert recalled.count == 0


def test_a_recital_goes_with_the_last_question_that_waits_for_it(make_model: Callable[..., PerkModel]) -> None:
    recalled, adapter = RecalledParts(), torch.ones(3)
    recital = PartRecital(adapter, _SEGMENTS, make_model().base)
    assert recalled.recital(adapter, [recital].pop) is recital
    assert recalled.recital(adapter, pytest.fail) is recital
    kept = weakref.ref(adapter)
    del adapter, recital
    assert kept() is None


def test_a_single_part_is_read_at_once(script: _Script) -> None:
    script.say(" 2:")
    script.say(None)
    script.say(" Ann built it.\n")
    assert script.told() == [f"{_QUESTION}\nSupport: Ann built it.\nAnswer:"]
    script.say(" Ann")
    script.say(None)
    again = AnswerRow(1, script.row.request, _TEMPLATES, script.base, script.readers)
    assert [again.prompt + again.ids] == [script.row.prompt + script.row.ids[: len(again.ids)]], "without recalling it"


def test_parts_are_told_apart_behind_the_first_sentence_of_all() -> None:
    parts = ["The Mill. It is old.", "Ann built it.", "It burned. It stands again."]
    assert told_apart(parts) == [
        "The Mill. It is old.",
        "The Mill. Ann built it.",
        "The Mill. It burned. It stands again.",
    ]


def _recite(recital: PartRecital, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    track = recital.tracks[0]
    for token in tokenizer.encode(text, add_special_tokens=False):
        track.cache.length += len(track.unread)
        recital.take(track, torch.nn.functional.one_hot(torch.tensor(token), len(tokenizer)) * 100.0)


@pytest.mark.parametrize("room", [3, 0])
def test_parts_are_no_longer_than_the_model(make_model: Callable[..., PerkModel], room: int) -> None:
    model = make_model()
    tokenizer = model.base.tokenizer
    most = len(tokenizer.encode("doc_1?\nSupport: Part 1 of 2:")) + room
    recital = PartRecital(torch.ones(model.adapter_size), _SEGMENTS, replace(model.base, max_positions=most))
    _recite(recital, tokenizer, " 2:")
    assert recital.done == (room == 0)
    while not recital.done:
        _recite(recital, tokenizer, "x" * (room + 1))
    assert recital.said == ("x" * room,) * 2 * (room > 0)


def test_of_very_many_parts_some_wait_until_others_have_ended(make_model: Callable[..., PerkModel]) -> None:
    model = make_model()
    tokenizer = model.base.tokenizer
    recital = PartRecital(torch.ones(model.adapter_size), _SEGMENTS, model.base)
    _recite(recital, tokenizer, " 101:")
    together = []
    while not recital.done:
        together.append(len(recital.tracks))
        _recite(recital, tokenizer, f" It is {len(together)}.\n")
    assert together == [96] * 6 + list(range(95, 0, -1))
    assert recital.said == tuple(f"It is {number}." for number in range(1, 102))


def test_of_many_parts_those_are_read_that_share_words_with_the_question(
    make_model: Callable[..., PerkModel],
) -> None:
    model = make_model()
    reader = torch.ones(model.adapter_size)
    said = ["The mill is old. It stands.", *(f"Room {number} is empty." for number in range(2, 12)), "Ann built it."]
    choice = PartChoice(said, _QUESTION, reader, Readers(_SEGMENTS, of_parts=reader), model.base)
    read = [str(model.base.tokenizer.decode(track.prompt)) for track in choice.tracks]
    assert len(read) == 8
    assert read[-1] == "The mill is old. Ann built it.\nQuestion:"


@pytest.mark.parametrize("of_parts", [True, False])
def test_where_part_and_question_are_too_long_the_part_is_cut(
    make_model: Callable[..., PerkModel], of_parts: bool
) -> None:
    model = make_model()
    adapter = torch.ones(model.adapter_size)
    readers = Readers(_SEGMENTS, of_parts=adapter if of_parts else None)
    most = len(model.base.tokenizer.encode(f"\nQuestion: {_QUESTION}")) + 9
    choice = PartChoice(["Ann built it."] * 3, _QUESTION, adapter, readers, replace(model.base, max_positions=most))
    for track in choice.tracks:
        assert len(track.unread) == most
        assert str(model.base.tokenizer.decode(track.unread)).endswith(f"\nQuestion: {_QUESTION}")


def test_of_a_long_question_the_end_chooses_the_part(make_model: Callable[..., PerkModel]) -> None:
    model = make_model()
    question = "and then " * 100 + _QUESTION
    choice = PartChoice(
        ["Ann slept.", "Bob woke."],
        question,
        torch.ones(model.adapter_size),
        Readers(_SEGMENTS),
        replace(model.base, max_positions=9999),
    )
    drafts = [track.draft for track in choice.tracks]
    assert [len(draft) for draft in drafts] == [48, 48]
    assert str(model.base.tokenizer.decode(drafts[0])).endswith(_QUESTION)
