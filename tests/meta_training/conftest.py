"""Small training data of the same kinds and formats as the real, so that these tests need no download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meta_training.tasks import CountTokens

STORIES = 20
CHAPTERS = 20


def _babi_story(index: int) -> dict[int, list[str]]:
    """Lines of story `index` for QA1, QA2 and QA3; its actor "Actor07" appears in no other story."""
    actor = f"Actor{index:02}"
    qa1 = [
        f"1 {actor} moved to the bathroom.",
        "2 John went to the hallway.",
        f"3 Where is {actor}? \tbathroom\t1",
        f"4 {actor} travelled to the office.",
        "5 John journeyed to the garden.",
        f"6 Where is {actor}? \toffice\t4",
        "7 Sandra went back to the kitchen.",
        "8 John moved to the bedroom.",
        "9 Where is John? \tbedroom\t8",
    ]
    qa2 = [
        f"1 {actor} went to the kitchen.",
        f"2 {actor} picked up the milk there.",
        f"3 {actor} moved to the garden.",
        "4 John moved to the office.",
        "5 John got the apple there.",
        "6 Where is the milk? \tgarden\t2 3",
        f"7 {actor} put down the milk there.",
        f"8 {actor} journeyed to the bedroom.",
        "9 John travelled to the hallway.",
        "10 Where is the apple? \thallway\t5 9",
    ]
    qa3 = [
        f"1 {actor} got the milk.",
        f"2 {actor} moved to the kitchen.",
        f"3 {actor} went to the garden.",
        "4 Where was the milk before the garden? \tkitchen\t1 3 2",
    ]
    return {1: qa1, 2: qa2, 3: qa3}


def _book() -> str:
    chapters = []
    for number in range(1, CHAPTERS + 1):
        sentences = [
            f'Chapter-mark-{number} saw Mr. Bennet write\nletter {letter} to his cousin. "How kind of him!" she cried.'
            for letter in range(1, 16)
        ]
        chapters.append(f"CHAPTER {'I' * number}.\n\n" + "\n\n".join(sentences))
    return "[Illustration: a frontispiece]\nPREFACE\n\n" + "\n\n".join(chapters) + "\n"


def _search_questions(split: str, count: int) -> str:
    rows = [
        {
            "context": f"The {split} town {index}. It lies by the river {index} and has a harbour and two old mills.",
            "question": f"which river flows through {split} town {index}",
            "answer": f"river {index}",
            "answers": [f"river {index}", f"the river {index}"],
            "task": "nq",
        }
        for index in range(count)
    ]
    # One paragraph may answer two questions.
    rows.append({**rows[0], "question": f"how many mills has {split} town 0", "answer": "two", "answers": []})
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``PERK_DATA_ROOT`` names: 20 stories of each kind, a book of 20 chapters, some search questions."""
    root = tmp_path / "data"
    for folder in ("babi", "background", "nq"):
        (root / folder).mkdir(parents=True)
    for facts in (1, 2, 3):
        lines = [line for index in range(STORIES) for line in _babi_story(index)[facts]]
        (root / "babi" / f"qa{facts}_train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "background" / "pride_and_prejudice.txt").write_text(_book(), encoding="utf-8")
    for split, count in (("train", 30), ("dev", 8)):
        (root / "nq" / f"{split}.jsonl").write_text(_search_questions(split, count), encoding="utf-8")
    monkeypatch.setenv("PERK_DATA_ROOT", str(root))
    return root


@pytest.fixture
def count_words() -> CountTokens:
    """Stands for a tokeniser where only lengths matter."""
    return lambda text: len(text.split())
