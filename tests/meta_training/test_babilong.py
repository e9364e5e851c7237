"""BabiLong: facts of a story hidden in prose; every question is answered by the facts that the document holds."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from meta_training.tasks import CountTokens, Document
from meta_training.tasks.babilong import BabiLong
from perk.errors import InvalidInput
from perk.series import numbered_series

SEEDS = range(30)
_EVENT = re.compile(r"((\w+) Event (\d+): (\w+) [a-z][^.]* the (\w+)(?: there)?\.)")
_MOVE = re.compile(r"(\w+) (?:moved|went|went back|travelled|journeyed) to the (\w+)\.")


def _text(document: Document) -> str:
    assert isinstance(document.context, str)
    return document.context


def _places(document: Document) -> dict[str, str]:
    """Where each actor is at the end, by the events' numbers and not by their places in the document."""
    last: dict[str, tuple[int, str]] = {}
    for line, actor, number, _, _ in _EVENT.findall(_text(document)):
        if move := _MOVE.search(line):
            last[actor] = max(last.get(actor, (0, "")), (int(number), move[2]))
    return {actor: place for actor, (_, place) in last.items()}


def _number(line: str) -> int:
    """Of an event among its actor's."""
    return int(line.split()[2].rstrip(":"))


@pytest.mark.usefixtures("data_root")
def test_the_last_numbered_event_of_an_actor_answers_where_it_is(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words)
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=300)
        places = _places(document)
        assert {q.question: q.answer for q in document.questions} == {
            f"Where is {actor}?": place for actor, place in places.items()
        }
        for question in document.questions:
            (support,) = question.support
            assert support in _text(document).splitlines()
            assert support.endswith(f"the {question.answer}.")
            assert question.task == "babilong-qa1"


@pytest.mark.usefixtures("data_root")
def test_events_are_numbered_by_actor_and_stand_in_any_order_between_prose(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words)
    out_of_order = 0
    for seed in SEEDS:
        lines = _text(task.draw(random.Random(seed), tokens=300)).splitlines()
        events = [match for line in lines if (match := _EVENT.fullmatch(line))]
        numbers: dict[str, list[int]] = {}
        for event in events:
            assert event[2] == event[4], "an event is its actor's"
            numbers.setdefault(event[2], []).append(int(event[3]))
        for found in numbers.values():
            assert sorted(found) == list(range(1, len(found) + 1))
            out_of_order += found != sorted(found)
        assert all("Chapter-mark" in line or "cried" in line for line in lines if not _EVENT.fullmatch(line))
    assert out_of_order


@pytest.mark.usefixtures("data_root")
def test_raw_facts_stand_in_the_order_of_the_story(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, kind="raw")
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=300)
        assert "Event" not in _text(document)
        # A later move overwrites an earlier one.
        places = dict(_MOVE.findall(_text(document)))
        assert {q.question: q.answer for q in document.questions} == {
            f"Where is {actor}?": place for actor, place in places.items()
        }


@pytest.mark.usefixtures("data_root")
def test_two_facts_tell_where_a_thing_is_whether_held_or_dropped(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, facts=2, kind="raw")
    seen = set()
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=200)
        answers = {question.question: question.answer for question in document.questions}
        dropped = "put down the milk" in _text(document)
        # Its holder walked on without the milk, and with the apple.
        assert answers == {
            "Where is the milk?": "garden",
            "Where is the apple?": "hallway" if dropped else "office",
        }
        for question in document.questions:
            assert all(line in _text(document).splitlines() for line in question.support)
            assert len(question.support) == 2
        seen.add(dropped)
    assert seen == {True, False}


@pytest.mark.usefixtures("data_root")
def test_three_facts_tell_where_a_thing_was_before(count_words: CountTokens) -> None:
    task = BabiLong(split="dev", count_tokens=count_words, facts=3)
    document = task.draw(random.Random(0), tokens=100)
    (question,) = document.questions
    assert question.question == "Where was the milk before the garden?"
    assert question.answer == "kitchen"
    assert [re.sub(r"Actor\d+", "A", line) for line in question.support] == [
        "A Event 1: A got the milk.",
        "A Event 3: A went to the garden.",
        "A Event 2: A moved to the kitchen.",
    ]


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("tokens", [100, 300, 1000, 3000])
def test_the_length_is_as_asked(tokens: int, count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words)
    longest_sentence = 12
    for seed in SEEDS:
        length = count_words(_text(task.draw(random.Random(seed), tokens=tokens)))
        # Each fact is counted with its line end, as tokenisers do.
        assert abs(length - tokens) <= longest_sentence + 10


@pytest.mark.usefixtures("data_root")
def test_passages_have_about_220_words_where_there_is_room(count_words: CountTokens) -> None:
    document = BabiLong(split="train", count_tokens=count_words).draw(random.Random(0), tokens=4000)
    *passages, _last = [len(line.split()) for line in _text(document).splitlines() if not _EVENT.fullmatch(line)]
    assert len(passages) > 10
    assert all(220 <= words <= 232 for words in passages)


@pytest.mark.usefixtures("data_root")
def test_sentences_keep_their_quotation_marks_and_titles_end_none(count_words: CountTokens) -> None:
    text = _text(BabiLong(split="train", count_tokens=count_words, inline_share=1.0).draw(random.Random(0), tokens=600))
    assert '"How kind of him!" she cried.' in text
    assert not re.search(r"Mr\.(?! Bennet)", text), "a fact or a line end broke a name"


@pytest.mark.usefixtures("data_root")
def test_facts_may_stand_between_the_sentences_of_a_passage(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, inline_share=1.0)
    inside = 0
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=300)
        assert {q.question: q.answer for q in document.questions} == {
            f"Where is {actor}?": place for actor, place in _places(document).items()
        }
        inside += sum("Event" in line and not _EVENT.fullmatch(line) for line in _text(document).splitlines())
    assert inside


@pytest.mark.usefixtures("data_root")
def test_a_renamed_story_keeps_its_answers_and_none_of_its_words(count_words: CountTokens) -> None:
    for facts in (1, 2):
        plain = BabiLong(split="train", count_tokens=count_words, facts=facts)
        renamed = BabiLong(split="train", count_tokens=count_words, facts=facts, renamed_share=1.0, inline_share=0.0)
        for seed in SEEDS:
            before = plain.draw(random.Random(seed), tokens=0)
            after = renamed.draw(random.Random(seed), tokens=0)
            assert len(after.questions) == len(before.questions)
            assert len({q.answer for q in after.questions}) == len({q.answer for q in before.questions})
            assert all(line in _text(after).splitlines() for q in after.questions for line in q.support)
            assert not re.search(r"\b(Mary|John|Sandra|Daniel)\b", _text(after))


@pytest.mark.usefixtures("data_root")
def test_the_splits_share_no_story_and_no_chapter(count_words: CountTokens) -> None:
    train, dev = (
        "\n".join(_text(task.draw(random.Random(seed), tokens=300)) for seed in range(100))
        for task in (
            BabiLong(split="train", count_tokens=count_words),
            BabiLong(split="dev", count_tokens=count_words),
        )
    )
    for mark in (r"Actor\d+", r"Chapter-mark-\d+\b"):
        assert not set(re.findall(mark, train)) & set(re.findall(mark, dev))
    assert set(re.findall(r"Actor\d+", dev)) == {"Actor18", "Actor19"}
    assert set(re.findall(r"Chapter-mark-\d+\b", dev)) == {"Chapter-mark-19", "Chapter-mark-20"}


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("facts", [1, 2, 3])
def test_a_position_places_the_supporting_facts(position: float, facts: int, count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, facts=facts)
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=3000, position=position)
        (question,) = document.questions
        lines = _text(document).splitlines()
        places = [lines.index(line) for line in question.support]
        assert max(places) - min(places) == len(places) - 1, "the supporting facts stand together"
        before = count_words("\n".join(lines[: min(places)])) / count_words(_text(document))
        assert abs(before - position) < 0.15


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_a_position_leaves_a_raw_story_true(position: float, count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, kind="raw")
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=300, position=position)
        (question,) = document.questions
        actor = question.question.removeprefix("Where is ").removesuffix("?")
        assert question.answer == dict(_MOVE.findall(_text(document)))[actor]


@pytest.mark.usefixtures("data_root")
def test_short_stories_can_be_left_out(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, min_facts=5)
    for seed in SEEDS:
        assert len(_EVENT.findall(_text(task.draw(random.Random(seed), tokens=100)))) == 6


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"facts": 4}, "facts: got 4, expected 1, 2 or 3"),
        ({"kind": "sorted"}, "kind: got 'sorted', expected events or raw"),
        ({"renamed_share": -0.1}, "renamed_share: got -0.1, expected from 0 to 1"),
        ({"invented_share": 2}, "invented_share: got 2, expected from 0 to 1"),
        ({"inline_share": 1.5}, "inline_share: got 1.5, expected from 0 to 1"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, object], message: str, count_words: CountTokens) -> None:
    with pytest.raises(InvalidInput, match=message):
        BabiLong(split="train", count_tokens=count_words, **options)  # type: ignore[arg-type]


def test_without_the_data_the_error_names_the_setting_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_words: CountTokens
) -> None:
    monkeypatch.setenv("PERK_DATA_ROOT", str(tmp_path))
    with pytest.raises(InvalidInput, match=r"PERK_DATA_ROOT: got a folder without babi/qa1_train.txt"):
        BabiLong(split="train", count_tokens=count_words)


def test_a_book_without_chapters_is_refused(data_root: Path, count_words: CountTokens) -> None:
    (data_root / "background" / "pride_and_prejudice.txt").write_text("It was a dark night.\n")
    with pytest.raises(InvalidInput, match="background: got a book without chapters"):
        BabiLong(split="train", count_tokens=count_words)


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("facts", [1, 2, 3])
def test_invented_stories_fit_the_asked_length_and_are_for_training_alone(facts: int, count_words: CountTokens) -> None:
    invented = BabiLong(split="train", count_tokens=count_words, facts=facts, invented_share=1.0)
    told = BabiLong(split="dev", count_tokens=count_words, facts=facts)
    asked = BabiLong(split="dev", count_tokens=count_words, facts=facts, invented_share=1.0)
    documents = [invented.draw(random.Random(seed), tokens=200) for seed in SEEDS]
    assert len({_text(document) for document in documents}) == len(SEEDS)
    for seed, document in zip(SEEDS, documents, strict=True):
        assert "Actor" not in _text(document), "none of the data set's own"
        assert 150 < count_words(_text(document)) < 230
        for question in document.questions:
            needed = question.support
            assert len(needed) == facts
            assert needed[-1].endswith(f"the {question.answer}.")
            assert all(line in _text(document).splitlines() for line in needed)
        assert asked.draw(random.Random(seed), tokens=200) == told.draw(random.Random(seed), tokens=200)


@pytest.mark.usefixtures("data_root")
def test_an_actors_events_are_recounted_to_the_last(count_words: CountTokens) -> None:
    task = BabiLong(split="train", count_tokens=count_words, recount=True)
    for seed in SEEDS:
        document = task.draw(random.Random(seed), tokens=300)
        for question in document.questions:
            listed = [line for line in question.support if line.startswith("Series ")]
            *support, none = question.support[len(listed) :]
            actor = question.question.removeprefix("Where is ").removesuffix("?")
            names = list(numbered_series(_text(document)))
            assert listed == [f"Series {number}: {name}." for number, name in enumerate(names, start=1)][: len(listed)]
            assert listed[-1].endswith(f": {actor} Event.")
            assert sorted(support) == sorted(line for line in _text(document).splitlines() if line.startswith(actor))
            assert support == sorted(support, key=_number)
            assert support[-1].endswith(f"the {question.answer}.")
            assert none == f"{actor} Event {len(support) + 1}: none."


@pytest.mark.usefixtures("data_root")
def test_all_events_are_recounted_with_what_becomes_of_the_thing(count_words: CountTokens) -> None:
    task = BabiLong(split="dev", count_tokens=count_words, facts=3, recount=True)
    (question,) = task.draw(random.Random(0), tokens=100).questions
    assert [re.sub(r"Actor\d+", "A", line) for line in question.support] == [
        "Series 1: A Event.",
        "A Event 1: A got the milk.",
        "milk taken: somewhere",
        "A Event 2: A moved to the kitchen.",
        "milk: kitchen, from somewhere",
        "A Event 3: A went to the garden.",
        "milk: garden, from kitchen",
        "A Event 4: none.",
        "A has the milk: garden",
        "Series 2: none.",
    ]
    assert question.derivation == "milk: garden, from kitchen"


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("facts", [2, 3])
@pytest.mark.parametrize("renamed", [0.0, 1.0])
def test_what_is_recounted_stands_in_the_document_or_follows_and_ends_with_the_answer(
    renamed: float, facts: int, count_words: CountTokens
) -> None:
    options = {"facts": facts, "invented_share": 1.0, "renamed_share": renamed, "inline_share": 0.5}
    plain, recounted = (
        BabiLong(split="train", count_tokens=count_words, recount=recount, **options)  # type: ignore[arg-type]
        for recount in (False, True)
    )
    for seed in SEEDS:
        before, after = (task.draw(random.Random(seed), tokens=200) for task in (plain, recounted))
        assert before.context == after.context
        series = numbered_series(_text(after))
        # Place names of two words are no event to `_EVENT`.
        events = [line[0] for line in re.finditer(r"\w+ Event \d+: [^.]*\.", _text(after))]
        for told, question in zip(before.questions, after.questions, strict=True):
            assert (told.question, told.answer) == (question.question, question.answer)
            numbered = [line for line in question.support if " Event " in line and not line.endswith(": none.")]
            assert numbered == sorted(events, key=lambda line: (line.split()[0], _number(line)))
            assert [line for line in question.support if " Event" in line and line not in numbered] == [
                line
                for number, (name, last) in enumerate(series.items(), start=1)
                for line in (f"Series {number}: {name}.", f"{name} {last + 1}: none.")
            ]
            assert set(told.support) <= set(numbered)
            assert question.derivation in question.support
            assert re.search(rf"(: |from ){question.answer}$", question.derivation)


@pytest.mark.usefixtures("data_root")
def test_a_story_told_in_order_is_not_recounted_by_numbers(count_words: CountTokens) -> None:
    with pytest.raises(InvalidInput, match="recount: got true with kind raw, expected facts with event numbers"):
        BabiLong(split="train", count_tokens=count_words, kind="raw", recount=True)
