"""``recall`` reads documents as one text, compares what its adapter says with it, and asks their questions."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from meta_training.__main__ import main
from meta_training.document import Document, Question
from meta_training.exchange import write_documents
from meta_training.recall import recall_documents
from perk import PerkModel
from perk.answer import Answer
from perk.checkpoint import load_checkpoint
from perk.errors import InvalidInput
from perk.settings import SegmentSettings

_MILL = Document(
    "The Mill\n\nIt stands by  a river. It is old.", (Question("Where is it?", "by a river", ("a river",)),)
)
_ANN = Document(
    "Ann was a mason. She built it.", (Question("Who built it?", "Ann"), Question("What was she?", "a mason"))
)
_PARTS = SegmentSettings(max_tokens=40, prefix="doc_{index}?\nSupport:", end="\n", parts=True)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Folder of one that reads paragraphs as parts, and has not learned to recall them."""
    tiny = load_checkpoint(tiny_checkpoint)
    changed = replace(tiny, settings=tiny.settings.model_copy(update={"segments": _PARTS}))
    changed.save(tmp_path / "parts")
    return tmp_path / "parts"


def test_what_is_recalled_chosen_and_answered_is_counted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PerkModel.load(checkpoint, device="cpu")
    said = ("The Mill. It stands by a river. It is old.", "Ann was a nurse. She built it.")
    answers = iter([("river", said[0]), ("Ann", said[1]), ("mason", said[0])])

    def answer(adapter: object, _question: str, **_options: object) -> Answer:
        model.readers.recalled.put(adapter, said)
        text, support = next(answers)
        return Answer(text, "stop", 1, 1, support)

    monkeypatch.setattr(model, "answer", answer)
    found = recall_documents(model, [_MILL, _ANN])
    assert found | {"tokens": 0, "encode_seconds": 0, "first_ask_seconds": 0, "ask_seconds": 0} == {
        "documents": 2,
        "parts": 2,
        "tokens": 0,
        "steps": model.settings.inner.steps,
        "encode_seconds": 0,
        "recalled": 1,
        "words": pytest.approx((1 + 6 / 7) / 2),
        "questions": 3,
        "chosen": pytest.approx(2 / 3),
        "exact_match": 1.0,
        "f1": 1.0,
        "first_ask_seconds": 0,
        "ask_seconds": 0,
    }


def test_an_adapter_that_knows_of_no_parts_recalls_none(checkpoint: Path) -> None:
    found = recall_documents(PerkModel.load(checkpoint, device="cpu"), [_MILL, _ANN])
    assert (found["recalled"], found["words"], found["chosen"], found["questions"]) == (0, 0.0, 0.0, 3)


def test_a_text_that_is_not_read_as_parts_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InvalidInput, match=r"documents: got a text of \d segments, expected paragraphs that"):
        recall_documents(PerkModel.load(tiny_checkpoint, device="cpu"), [_MILL, _ANN])


def test_the_command_prints_one_json_object_or_lines(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_documents(tmp_path / "data.jsonl", [_MILL, _ANN])
    command = ["recall", "--checkpoint", str(checkpoint), "--data", str(tmp_path / "data.jsonl")]
    for options in (["--json"], ["--documents", "1"]):
        monkeypatch.setattr(sys, "argv", ["python -m meta_training", *command, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    first, *lines = capsys.readouterr().out.splitlines()
    assert json.loads(first)["parts"] == 2
    assert "parts: 1" in lines
