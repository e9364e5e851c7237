"""The user's own documents: taken from a file as they are, split by document."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from meta_training.document import Document, Question
from meta_training.exchange import write_documents
from meta_training.tasks import CountTokens, Split, build_task
from meta_training.tasks.json_lines import JsonLines
from perk.errors import InvalidInput


def _file(folder: Path, count: int) -> Path:
    """Document N has 10·(N+1) words and two questions."""
    path = folder / "own.jsonl"
    questions = (Question("Who?", "Ada"), Question("Where?", "here"))
    documents = [Document(" ".join([f"word{index}"] * 10 * (index + 1)), questions) for index in range(count)]
    write_documents(path, documents)
    return path


def _drawn(path: Path, split: Split, count_words: CountTokens) -> set[str]:
    task = JsonLines(split=split, count_tokens=count_words, path=path)
    documents = [task.draw(random.Random(seed), tokens=10_000) for seed in range(200)]
    assert all(len(document.questions) == 2 for document in documents)
    return {str(document.context).split()[0] for document in documents}


def test_the_last_tenth_of_the_documents_is_for_development(tmp_path: Path, count_words: CountTokens) -> None:
    path = _file(tmp_path, 20)
    assert _drawn(path, "train", count_words) == {f"word{index}" for index in range(18)}
    assert _drawn(path, "dev", count_words) == {"word18", "word19"}


def test_two_documents_are_one_for_each_split(tmp_path: Path, count_words: CountTokens) -> None:
    path = _file(tmp_path, 2)
    assert _drawn(path, "train", count_words) == {"word0"}
    assert _drawn(path, "dev", count_words) == {"word1"}


def test_one_document_can_only_be_trained_on(tmp_path: Path, count_words: CountTokens) -> None:
    path = _file(tmp_path, 1)
    assert _drawn(path, "train", count_words) == {"word0"}
    with pytest.raises(InvalidInput, match=r"path: got own.jsonl with one document, expected at least two"):
        JsonLines(split="dev", count_tokens=count_words, path=path)


def test_documents_longer_than_asked_are_not_drawn(tmp_path: Path, count_words: CountTokens) -> None:
    task = JsonLines(split="train", count_tokens=count_words, path=_file(tmp_path, 20))
    lengths = {count_words(str(task.draw(random.Random(seed), tokens=45).context)) for seed in range(100)}
    assert lengths == {10, 20, 30, 40}
    with pytest.raises(InvalidInput, match="tokens: got 9, expected at least 10"):
        task.draw(random.Random(0), tokens=9)


def test_a_position_is_refused(tmp_path: Path, count_words: CountTokens) -> None:
    task = JsonLines(split="train", count_tokens=count_words, path=_file(tmp_path, 2))
    with pytest.raises(InvalidInput, match=r"position: got 0\.5"):
        task.draw(random.Random(0), tokens=100, position=0.5)


def test_a_task_is_built_by_name_with_its_options(tmp_path: Path, count_words: CountTokens) -> None:
    task = build_task("json-lines", split="train", count_tokens=count_words, options={"path": str(_file(tmp_path, 3))})
    assert task.name == "json-lines"
    with pytest.raises(InvalidInput, match=r"options: got none, expected those of task json-lines .*path"):
        build_task("json-lines", split="train", count_tokens=count_words)
    with pytest.raises(InvalidInput, match=r"options: got records, expected those of task key-value .*records"):
        build_task("key-value", split="train", count_tokens=count_words, options={"records": 3})
    with pytest.raises(InvalidInput, match="task: got 'poems', expected one of student-recall, "):
        build_task("poems", split="train", count_tokens=count_words)
