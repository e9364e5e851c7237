"""``make-data`` writes generated documents in the exchange format, the same ones for the same seed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meta_training.__main__ import main
from meta_training.exchange import read_documents
from meta_training.make_data import MAKEABLE_TASKS, make_data
from perk.base_model import load_tokenizer
from perk.errors import InvalidInput

# Published sets are made from folders in their own test.
OF_THIS_MACHINE = sorted({*MAKEABLE_TASKS} - {"hotpot-qa", "squad", "trivia-qa"})


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize("task", OF_THIS_MACHINE)
def test_every_task_is_written_and_can_be_read_again(task: str, tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / f"{task}.jsonl"
    lines = make_data(task, out, tokens=300, count=5, base=str(tiny_llama))

    documents = read_documents(out)
    assert sum(len(document.questions) for document in documents) == lines == len(out.read_text().splitlines())
    # Two draws may meet in one document where there are few stories.
    assert 1 <= len(documents) <= 5
    assert {question.task for document in documents for question in document.questions} == {task}


def test_documents_are_measured_in_tokens_of_the_base(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    make_data("student-recall", out, tokens=600, count=5, base=str(tiny_llama))
    tokenizer = load_tokenizer(str(tiny_llama))
    for document in read_documents(out):
        assert 500 < len(tokenizer.encode(document.text)) <= 600


def test_the_same_seed_writes_the_same_file_and_another_seed_another(tiny_llama: Path, tmp_path: Path) -> None:
    def made(name: str, *, seed: int) -> bytes:
        out = tmp_path / name
        make_data("key-value", out, tokens=200, count=3, base=str(tiny_llama), seed=seed)
        return out.read_bytes()

    assert made("a", seed=1) == made("b", seed=1)
    assert made("a", seed=1) != made("c", seed=2)


def test_records_fix_the_number_of_students(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    make_data("student-recall", out, count=4, base=str(tiny_llama), options={"records": 6, "questions": 3})
    documents = read_documents(out)
    assert [len(str(document.context).splitlines()) for document in documents] == [6] * 4
    assert [len(document.questions) for document in documents] == [3] * 4


def test_a_position_leaves_one_question_a_document(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    assert make_data("key-value", out, tokens=200, count=4, position=1.0, base=str(tiny_llama)) == 4
    for document in read_documents(out):
        assert document.questions[0].support == (str(document.context).splitlines()[-1],)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "poems"}, "task: got 'poems', expected one of student-recall, "),
        ({"task": "json-lines"}, "task: got 'json-lines', expected one of student-recall, "),
        ({"tokens": 0}, "tokens: got 0, expected at least 1"),
        ({"count": 0}, "count: got 0, expected at least 1"),
        ({"position": 1.5}, "position: got 1.5, expected from 0 to 1"),
        ({"position": float("nan")}, "position: got nan, expected from 0 to 1"),
        ({"options": {"records": -1}}, "records: got -1, expected 1 to"),
        ({"task": "key-value", "options": {"records": 6}}, "options: got records, expected those of task key-value"),
        ({"options": {"split": "train"}}, "options: got split, expected those of task student-recall"),
    ],
)
def test_bad_options_are_refused_by_name_and_nothing_is_written(
    options: dict[str, object], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made.jsonl"
    with pytest.raises(InvalidInput, match=message):
        make_data(**{"task": "student-recall", "out": out, "base": str(tiny_llama), **options})  # type: ignore[arg-type]
    assert not out.exists()


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["meta_training", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_the_command_writes_the_file_and_says_what_is_in_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.jsonl"
    options = ("--out", str(out), "--tokens", "300", "--count", "2", "--seed", "3", "--base", str(tiny_llama))
    assert _run(monkeypatch, "make-data", "key-value", *options, "--questions", "4", "--split", "train") == 0
    assert capsys.readouterr().out == f"{out}: 8 questions about 2 documents\n"
    assert len(read_documents(out)) == 2


def test_the_command_takes_any_option_of_the_task(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.jsonl"
    made = ("make-data", "student-recall", "--out", str(out), "--count", "2", "--base", str(tiny_llama))
    assert _run(monkeypatch, *made, "--records", "4", "--option", "near_share=1", "--option", "questions=5") == 0
    for document in read_documents(out):
        assert len(document.questions) == 5
        assert len({line.removeprefix("Student <")[:2] for line in document.text.splitlines()}) == 1

    assert _run(monkeypatch, *made, "--option", "near_share") == 2
    assert "option: got 'near_share', expected name=value" in capsys.readouterr().err
    assert _run(monkeypatch, *made, "--option", "questions=[") == 2
    assert "option: got 'questions=[', expected a YAML value" in capsys.readouterr().err


def test_the_command_reports_bad_input_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "make-data", "poems", "--out", str(tmp_path / "made.jsonl")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: task: got 'poems', expected one of ")
    assert error.count("\n") == 1
