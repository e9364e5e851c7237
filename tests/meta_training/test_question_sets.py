"""Published question sets, read through ``datasets`` from folders in the same schema, with distractors mixed in."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from meta_training.exchange import read_documents
from meta_training.make_data import make_data
from meta_training.tasks import CountTokens, Document, Split, Task, build_task
from perk.errors import InvalidInput
from perk.segments import normalise

SEEDS = range(10)
ROWS = 12


def _hotpot(index: int, split: str) -> dict[str, Any]:
    pairs = [
        (f"Bridge {split} {index}", [f"It crosses river {split} {index}.", " It is long."]),
        (f"Plain {split} {index}", ["Nothing happens here.", " Nor there."]),
        (f"River {split} {index}", ["It flows.", f" It ends in lake {split}{index}.", " Boats go there."]),
    ]
    return {
        "id": str(index),
        "question": f"Where does the river under bridge {split} {index} end?",
        "answer": f"lake {split}{index}",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {
            "title": [f"River {split} {index}", f"Bridge {split} {index}", f"Bridge {split} {index}"],
            "sent_id": [1, 0, 9],
        },
        "context": {"title": [title for title, _ in pairs], "sentences": [sentences for _, sentences in pairs]},
    }


def _squad(index: int, split: str) -> dict[str, Any]:
    # Two neighbours are about one paragraph; in every second pair, the second has no answer.
    built = f"It was built in {1500 + index // 2} by monks who had no house."
    stands, ends = "stands on a hill that is seen from the sea.", "It is red, and seen from farther than the hill."
    context = f"Tower {split}{index // 2} {stands} {built} {ends}"
    asked = [("When was it built?", str(1500 + index // 2)), ("Who built it?", "monks")]
    question, answer = asked[index % 2]
    gone = index % 4 == 3
    found = (
        {"text": [], "answer_start": []}
        if gone
        else {"text": [answer] * 2, "answer_start": [context.index(answer)] * 2}
    )
    return {"id": str(index), "title": "Towers", "context": context, "question": question, "answers": found}


def _trivia(index: int, split: str) -> dict[str, Any]:
    paragraphs = [
        f"Page {split}{index} begins with words that lead nowhere. " * 20,
        "What some of the people say here is never a sure thing. "
        f"The inventor of thing {split}{index} was Dr {split.upper()}{index}, of course. " + "And so on. " * 60,
    ]
    silent = index % 3 == 0
    return {
        "question": f"Who invented thing {split}{index}?",
        "question_id": str(index),
        "entity_pages": {"title": ["a"], "wiki_context": ["\n\n".join(paragraphs[:1] if silent else paragraphs)]},
        "search_results": {"title": ["b"], "search_context": [f"A search found nothing about {split}{index}."]},
        "answer": {"value": f"Doctor {split}{index}", "aliases": [f"Doctor {split}{index}", f"Dr {split}{index}"]},
    }


_MADE = {"hotpot-qa": _hotpot, "squad": _squad, "trivia-qa": _trivia}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a set, with a file for each split."""
    root = tmp_path_factory.mktemp("question-sets")
    for task, make in _MADE.items():
        (root / task).mkdir()
        for split in ("train", "validation"):
            lines = [json.dumps(make(index, split[:3])) for index in range(ROWS)]
            (root / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {task: root / task for task in _MADE}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def _task(
    task: str, folders: dict[str, Path], count_words: CountTokens, *, split: Split = "train", **options: Any
) -> Task:
    return build_task(task, split=split, count_tokens=count_words, options={"source": str(folders[task]), **options})


def _draw(task: Task, *, tokens: int = 400, position: float | None = None) -> Iterator[Document]:
    return (task.draw(random.Random(seed), tokens=tokens, position=position) for seed in SEEDS)


@pytest.mark.parametrize("task", _MADE)
def test_every_question_is_answered_by_a_passage_and_supported_in_its_words(
    task: str, folders: dict[str, Path], count_words: CountTokens
) -> None:
    numbers = set()
    for document in _draw(_task(task, folders, count_words), tokens=1200):
        assert isinstance(document.context, tuple)
        text = "\n".join(document.context)
        for question in document.questions:
            assert question.task == task
            assert any(answer.lower() in text.lower() for answer in (question.answer, *question.answers))
            assert question.support
            assert all(sentence in normalise(text) for sentence in question.support)
        numbers.add(len(document.questions))
        assert len(set(document.context)) == len(document.context)
        assert sum(map(count_words, document.context)) <= 1200
    assert max(numbers) == 4


def test_a_hotpot_question_has_its_two_paragraphs_in_the_order_of_the_facts(
    folders: dict[str, Path], count_words: CountTokens
) -> None:
    document = next(_draw(_task("hotpot-qa", folders, count_words, questions=1), tokens=60))
    (question,) = document.questions
    number = question.answer.removeprefix("lake tra")
    assert question.support == (
        f"River tra {number}\nIt flows. It ends in lake tra{number}. Boats go there.",
        f"Bridge tra {number}\nIt crosses river tra {number}. It is long.",
    )
    titles = [passage.splitlines()[0] for passage in document.context]
    assert {f"Bridge tra {number}", f"River tra {number}", f"Plain tra {number}"} <= set(titles)
    assert len(titles) > 3, "paragraphs of other questions fill the length"


def test_a_squad_paragraph_comes_with_all_its_answerable_questions(
    folders: dict[str, Path], count_words: CountTokens
) -> None:
    seen = set()
    for document in _draw(_task("squad", folders, count_words), tokens=1):
        (passage,) = document.context
        year = int(passage.split(" in ")[1][:4])
        expected = {"When was it built?": str(year)} | ({} if year % 2 else {"Who built it?": "monks"})
        assert {question.question: question.answer for question in document.questions} == expected
        assert {question.support for question in document.questions} == {(passage,)}
        seen.add(year % 2)
    assert seen == {0, 1}


def test_a_trivia_question_is_passed_over_where_no_page_holds_an_accepted_answer(
    folders: dict[str, Path], count_words: CountTokens
) -> None:
    for document in _draw(_task("trivia-qa", folders, count_words, questions=1)):
        (question,) = document.questions
        number = int(question.answer.removeprefix("Doctor tra"))
        assert number % 3
        assert question.answers == (f"Dr tra{number}",)
        (support,) = question.support
        before = "What some of the people say here is never a sure thing."
        assert support.startswith(f"{before} The inventor of thing tra{number} was Dr TRA{number}, of course. ")
        assert any(support in passage.splitlines() for passage in document.context)


@pytest.mark.parametrize("task", _MADE)
@pytest.mark.parametrize(("position", "place"), [(0.0, 0), (1.0, -1)])
def test_a_position_places_the_passages_of_one_question(
    task: str, position: float, place: int, folders: dict[str, Path], count_words: CountTokens
) -> None:
    for document in _draw(_task(task, folders, count_words), position=position):
        (question,) = document.questions
        # All towers were built by monks.
        assert len(document.context) > 2 or question.answer == "monks"
        assert any(sentence in document.context[place] for sentence in question.support)


def test_no_distractor_from_elsewhere_holds_the_answer(folders: dict[str, Path], count_words: CountTokens) -> None:
    for document in _draw(_task("squad", folders, count_words), position=0.5):
        (question,) = document.questions
        # Whoever is asked about monks sees no other tower.
        assert sum(question.answer in passage for passage in document.context) == 1


@pytest.mark.usefixtures("data_root")
def test_distractors_may_be_a_books_prose(folders: dict[str, Path], count_words: CountTokens) -> None:
    document = next(_draw(_task("hotpot-qa", folders, count_words, questions=1, background_share=1.0), tokens=600))
    assert sum("Chapter-mark" in passage for passage in document.context) == len(document.context) - 2
    assert 500 < sum(map(count_words, document.context)) < 650


def test_the_splits_are_the_sets_own(folders: dict[str, Path], count_words: CountTokens) -> None:
    assert "val" in " ".join(next(_draw(_task("hotpot-qa", folders, count_words, split="dev"))).context)
    assert "val" not in " ".join(next(_draw(_task("hotpot-qa", folders, count_words))).context).replace("valley", "")


@pytest.mark.parametrize("task", _MADE)
def test_make_data_takes_a_folder(task: str, folders: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    options = {"questions": 2, "source": str(folders[task])}
    assert make_data(task, out, tokens=300, count=3, base=str(tiny_llama), options=options) >= 3
    assert {question.task for document in read_documents(out) for question in document.questions} == {task}


def test_what_is_no_such_set_is_refused_by_name(
    folders: dict[str, Path], count_words: CountTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"source: got .*nowhere, expected a question set with configuration None"):
        build_task("squad", split="train", count_tokens=count_words, options={"source": str(tmp_path / "nowhere")})
    with pytest.raises(InvalidInput, match="expected a question set with the columns of hotpotqa/hotpot_qa"):
        next(_draw(_task("hotpot-qa", {"hotpot-qa": folders["squad"]}, count_words)))
    with pytest.raises(InvalidInput, match="questions: got 0"):
        next(_draw(_task("squad", folders, count_words, questions=0)))
    with pytest.raises(InvalidInput, match=r"background_share: got 1\.5"):
        next(_draw(_task("squad", folders, count_words, background_share=1.5)))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInput, match=r"pip install 'perk-serve\[data\]'"):
        next(_draw(_task("squad", folders, count_words)))
