"""The reader names entries, the document's adapter recalls each by itself, and what finds nothing steps back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perk import AnswerRequest, PerkModel
from perk.answer_row import AnswerDelta, AnswerRow
from perk.readers import Readers
from perk.settings import SegmentSettings, TemplateSettings
from perk.token_track import TokenTrack

MakeAdapter = Callable[[PerkModel, int], Tensor]

_TEMPLATES = TemplateSettings(
    prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}", max_support_tokens=200
)
_SEGMENTS = SegmentSettings(max_tokens=30, prefix="doc_{index}?\nSupport:", end="\n", series=True)
_QUESTION = "Where is the milk?"
_END = None


class _Script:
    """A row that is told what the model says, with the adapter that each word is said under."""

    def __init__(
        self, model: PerkModel, templates: TemplateSettings = _TEMPLATES, segments: SegmentSettings = _SEGMENTS
    ) -> None:
        self.reader = torch.zeros(model.adapter_size)
        self.document = torch.ones(model.adapter_size)
        self.base = model.base
        request = AnswerRequest(_QUESTION, adapter=self.document, max_tokens=9)
        self.row = AnswerRow(0, request, templates, model.base, Readers(segments, self.reader))
        self.deltas: list[AnswerDelta] = []

    @property
    def track(self) -> TokenTrack:
        """What the row goes on with, or waits for."""
        return self.row.tracks[0]

    def read(self) -> str:
        """What the model reads next, nothing drafted."""
        track = self.track
        track.draft = []
        text = str(self.base.tokenizer.decode(track.unread))
        track.cache.length += len(track.unread)
        return text

    def say(self, text: str | None, track: TokenTrack | None = None, *, sure: bool = True) -> None:
        """Write a text, or the end token, on a track, by default the first; `sure`: with all of the probability."""
        base = self.base
        ids = [base.eos_id] if text is None else base.tokenizer.encode(text, add_special_tokens=False)
        for token in ids:
            if track is None and self.track.unread:
                self.read()
            logits = torch.nn.functional.one_hot(torch.tensor([token]), len(base.tokenizer)).float()
            self.deltas += self.row.take_all(track or self.track, logits * (100 if sure else 1))


@pytest.fixture
def script(make_model: Callable[..., PerkModel]) -> _Script:
    return _Script(make_model())


def test_entries_are_recalled_alone_and_the_reader_reads_them(script: _Script) -> None:
    row = script.row
    assert script.track.adapter is script.reader
    assert script.read() == f"{_QUESTION}\nSupport:"
    script.say(" Series 1:")
    assert script.track.adapter is script.document
    assert script.read() == "doc_?\nSupport: Series 1:"
    script.say(" Ann Event.\n")
    assert script.track.adapter is script.reader
    assert script.read() == ": Ann Event.\n"
    script.say("Ann Event 12:")
    assert script.read() == "doc_?\nSupport: Ann Event 12:"
    script.say(" Ann took the milk. Then she slept.\n")
    assert script.read().endswith(" Ann took the milk. Then she slept.\n")
    script.say("milk taken: hall\nAnswer: hall")
    script.say(_END)
    assert row.finished
    assert "".join(delta.text for delta in script.deltas) == "hall"
    assert script.deltas[-1].finish_reason == "stop"
    assert script.deltas[-1].support == (
        "Series 1: Ann Event.\nAnn Event 12: Ann took the milk. Then she slept.\nmilk taken: hall"
    )


def test_a_line_of_which_nothing_more_is_known_ends_too(script: _Script) -> None:
    script.say(" Series 1:")
    script.say(" Ann Event.")
    assert script.track.adapter is script.document
    script.say(_END)
    assert script.track.adapter is script.reader
    assert script.read() == ": Ann Event.\n"


def test_a_line_without_an_end_is_cut(script: _Script) -> None:
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    script.say("Ann Event 1:")
    while script.track.adapter is script.document:
        script.say("x")
    # As many tokens as a segment has at most, the line break not counted.
    assert script.read() == ":" + "x" * _SEGMENTS.max_tokens + "\n"


@pytest.mark.parametrize(
    ("line", "recalled"),
    [("milk:", False), ("12:", False), ("Ann has the 3rd:", False), ("North gate, entry 3:", True)],
)
def test_a_name_and_a_number_are_recalled_behind_and_nothing_else(script: _Script, line: str, recalled: bool) -> None:
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    script.say(line)
    assert (script.track.adapter is script.document) == recalled


def test_entries_that_come_next_are_recalled_beside_the_wanted_one(script: _Script) -> None:
    script.say(" Series 1:")
    assert _cues(script) == ["Series 1", "Series 2", "Series 3", "Series 4"]
    series, *rest = script.row.tracks
    for track in rest:
        script.say(" none.\n", track)
    assert script.track is series, "the row waits for the first"
    script.say(" Ann Event.\n")
    script.say("Ann Event 2:")
    assert _cues(script) == ["Ann Event 2", "Ann Event 3", "Ann Event 4", "Ann Event 5"]
    for track, line in zip(script.row.tracks, [" Ann slept.\n", " Ann woke.\n", " Ann ate.\n", " Ann"], strict=True):
        script.say(line, track)
    assert script.track.adapter is script.reader
    script.say("Ann Event 3:")
    script.say("Ann Event 4:")
    assert script.track.adapter is script.reader, "both lines were at hand"
    script.say("Ann Event 5:")
    assert _cues(script) == ["Ann Event 5"]
    script.say(" left.\n")
    script.say("Ann Event 7:")
    assert len(_cues(script)) == 5, "as many as were read"
    script.say(" Ann sang.\n")
    script.say("Ann Event 10:")
    assert _cues(script) == ["Ann Event 10", "Ann Event 8", "Ann Event 9", "Ann Event 11"]
    script.say(" Ann ran.\n")
    script.say("Series 2:")
    script.say("milk taken: hall\nAnswer: hall")
    script.say(_END)
    assert script.deltas[-1].support == (
        "Series 1: Ann Event.\nAnn Event 2: Ann slept.\nAnn Event 3: Ann woke.\nAnn Event 4: Ann ate.\n"
        "Ann Event 5: Ann left.\nAnn Event 7: Ann sang.\nAnn Event 10: Ann ran.\nSeries 2: none.\nmilk taken: hall"
    )


def _cues(script: _Script) -> list[str]:
    """Names of the entries that are being recalled."""
    prompts = (str(script.base.tokenizer.decode(track.prompt)) for track in script.row.tracks)
    return [prompt.removeprefix("doc_?\nSupport: ").removesuffix(":") for prompt in prompts]


def test_a_series_that_says_the_same_over_and_over_has_ended(script: _Script) -> None:
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    for number in (1, 2, 3):
        script.say(f"Ann Event {number}:")
        script.say(" Ann slept.\n")
    assert str(script.base.tokenizer.decode(script.row.ids)) == (
        " Series 1: Ann Event.\nAnn Event 1: Ann slept.\nAnn Event 2: Ann slept.\nAnn Event 3: none.\n"
    )
    assert script.track.draft == []


@pytest.mark.parametrize(
    ("written", "kept", "goes_on"),
    [
        ("Ann Event 2:", "Ann Event 2:", "doc_?\nSupport: Ann Event 2:"),
        ("Ann Event 3:", "Ann Event ", "3"),
        ("milk taken: hall", "", "m"),
    ],
)
def test_the_next_entry_is_drafted_and_kept_as_far_as_it_is_written(
    script: _Script, written: str, kept: str, goes_on: str
) -> None:
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    script.say("Ann Event 1:")
    script.say(" Ann slept.\n")
    row, track, tokenizer = script.row, script.track, script.base.tokenizer
    read = track.cache.length
    assert tokenizer.decode(track.unread) == ": Ann slept.\nAnn Event 2:"
    track.cache.length += len(track.unread)
    ids = tokenizer.encode(written, add_special_tokens=False)[: len(track.draft)]
    logits = torch.nn.functional.one_hot(torch.tensor([*ids, *[0] * (1 + len(track.draft) - len(ids))]), len(tokenizer))
    assert row.take_all(track, logits.float()) == []
    assert str(tokenizer.decode(track.ids)).endswith(": Ann slept.\n" + kept + ("" if goes_on[0] == "d" else goes_on))
    behind = tokenizer.encode(": Ann slept.\n" + kept, add_special_tokens=False)
    assert track.cache.length == read + len(behind), "what was drafted and not written is still in the cache"
    assert tokenizer.decode(script.track.unread) == goes_on


def _leaves(script: _Script) -> None:
    assert script.track.adapter is script.document
    assert script.read() == f"{_QUESTION}\nSupport:"
    script.say(" Ann Event 3: Ann slept.\nAnswer: bed")
    assert script.track.adapter is script.document, "a name and a number are no cue to a document's adapter"
    script.say(_END)
    assert "".join(delta.text for delta in script.deltas) == "bed"
    assert script.deltas[-1].support == "Ann Event 3: Ann slept."


@pytest.mark.parametrize("said", [_END, "\nAnswer: no", " milk: hall\nAnswer: no"])
def test_what_recalls_nothing_leaves_the_question_to_the_document(script: _Script, said: str | None) -> None:
    script.say(said if said is None else said.partition(" no")[0])
    _leaves(script)


@pytest.mark.parametrize("recalled", [" none.\n", " 1911, and it rained.\n", "\n"])
def test_a_document_without_series_answers_by_itself(script: _Script, recalled: str) -> None:
    script.say(" Series 1:")
    script.say(recalled)
    _leaves(script)


def test_a_series_that_a_document_makes_up_is_none(script: _Script) -> None:
    script.say(" Series 1:")
    script.say(" Ann", sure=False)
    script.say(" Event.\n")
    _leaves(script)


def test_lines_beside_one_that_leaves_say_nothing_of_the_parts(make_model: Callable[..., PerkModel]) -> None:
    script = _Script(make_model(), segments=_SEGMENTS.model_copy(update={"parts": True}))
    script.say(" Series 1:")
    _, *others = script.row.tracks
    script.read()
    script.say("\n")
    (name,) = script.row.tracks
    assert name.prompt
    assert others
    for track in others:
        script.say(" 2:", track)
    assert script.row.tracks == [name]
    assert not name.ids
    assert script.read() == "doc_1?\nSupport: Part 1 of"


def test_behind_a_series_that_was_recalled_a_doubtful_line_is_read(script: _Script) -> None:
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    script.say("Ann Event 1:")
    script.say(" Ann slept.\n", sure=False)
    assert script.track.adapter is script.reader
    assert script.read().endswith(": Ann slept.\n")


def test_a_reader_that_goes_on_and_on_leaves_too(make_model: Callable[..., PerkModel]) -> None:
    script = _Script(make_model(), _TEMPLATES.model_copy(update={"max_support_tokens": 8}))
    while script.track.adapter is script.reader:
        script.say("y")
    assert script.read() == f"{_QUESTION}\nSupport:"


@pytest.mark.parametrize("most", [28, 30, 40])
def test_what_is_read_and_drafted_leaves_the_answer_its_room(make_model: Callable[..., PerkModel], most: int) -> None:
    script = _Script(make_model(), _TEMPLATES.model_copy(update={"max_support_tokens": most}))
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    track = script.track
    assert len(track.ids) + len(track.draft) <= most
    track.draft = []
    script.say("Ann Event 1:")
    while script.track.adapter is script.document:
        script.say("x")
    assert len(track.ids) + len(track.draft) <= most


def test_recalled_lines_count_towards_what_may_be_recalled(make_model: Callable[..., PerkModel]) -> None:
    script = _Script(make_model(), _TEMPLATES.model_copy(update={"max_support_tokens": 40}))
    script.say(" Series 1:")
    script.say(" Ann Event.\n")
    while script.row.answer_from is None:
        script.say("y")
    assert script.base.tokenizer.decode(script.row.ids[40:]) == "\nAnswer:"
    assert script.row.support.startswith("Series 1: Ann Event.\nyyy")


def test_without_a_reader_nothing_changes_and_a_base_alone_has_none(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter
) -> None:
    """Untrained, it finds nothing to recall: what is answered is what the document's adapter answers."""
    plain = make_model(templates=_TEMPLATES.model_copy(update={"max_support_tokens": 7}))
    tensors = plain.checkpoint.tensors | {"reader": make_adapter(plain, 5)}
    reading = PerkModel(plain.base, replace(plain.checkpoint, tensors=tensors), adapted=plain.adapted)
    assert reading.fingerprint != plain.fingerprint
    requests = [
        AnswerRequest(question, adapter=None if seed == 2 else make_adapter(plain, seed), max_tokens=5 + seed)
        for seed, question in enumerate(("Where is Mary?", "Why?", _QUESTION, "Who has the apple?"))
    ]
    batch = reading.start_batch()
    rows = [batch.add(request) for request in requests]
    while batch.rows:
        batch.advance()
    for row, request in zip(rows, requests, strict=True):
        alone = plain.answer(request.adapter, request.question, max_tokens=request.max_tokens)
        assert (row.sent, row.support) == (alone.text, alone.support)
