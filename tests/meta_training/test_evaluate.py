"""``evaluate`` encodes each document once, asks all its questions, and scores the answers of three methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from meta_training.__main__ import main
from meta_training.document import Document, Question
from meta_training.evaluate import Method, evaluate, score_documents
from meta_training.exchange import write_documents
from perk import AnswerRequest, PerkModel
from perk.answer import Answering
from perk.base_model import load_base_model
from perk.checkpoint import load_checkpoint
from perk.inner_loop import EncodedDocument
from perk.settings import TemplateSettings

STORY = "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office."
MAX_TOKENS = 48


class RecordingModel(PerkModel):
    """Notes what it is asked for."""

    encoded: list[str]
    batches: list[list[AnswerRequest]]

    def encode(self, text: str) -> EncodedDocument:
        self.encoded.append(text)
        return super().encode(text)

    def start_answer(self, requests: Sequence[AnswerRequest]) -> Answering:
        self.batches.append(list(requests))
        return super().start_answer(requests)


@pytest.fixture
def model(tiny_checkpoint: Path) -> RecordingModel:
    loaded = RecordingModel.load(tiny_checkpoint, device="cpu")
    assert isinstance(loaded, RecordingModel)
    loaded.encoded, loaded.batches = [], []
    return loaded


def _document(context: str | tuple[str, ...] = STORY, questions: int = 1, answer: str = "kitchen") -> Document:
    return Document(context, tuple(Question(f"Where is Mary? ({n})", answer, task="t") for n in range(questions)))


def _said(model: PerkModel, method: Method, context: str, question: str) -> str:
    adapter = model.encode(context).adapter if method == "perk" else None
    asked = f"{context}\n\n{question}" if method == "in-context" else question
    return model.answer(adapter, asked, max_tokens=MAX_TOKENS, stop=("\n",)).text


@pytest.mark.parametrize("method", ["perk", "in-context", "base"])
def test_the_answers_scored_are_those_of_the_method(method: Method, model: RecordingModel) -> None:
    questions = ["Where is Mary?", "Where is John?"]
    said = [_said(model, method, STORY, question) for question in questions]
    right = Document(STORY, tuple(map(Question, questions, said)))
    wrong = Document(STORY, tuple(Question(question, "no such words") for question in questions))
    assert score_documents(model, [right], method=method).exact == {"": [True, True]}
    assert score_documents(model, [wrong], method=method).exact == {"": [False, False]}


def test_a_document_is_encoded_once_for_all_its_questions(model: RecordingModel) -> None:
    scores = score_documents(model, [_document(questions=10), _document(("One.", "Two."))])
    assert model.encoded == [STORY, "One.\n\nTwo."]
    assert [len(batch) for batch in model.batches] == [8, 2, 1]
    first, *others = [request.adapter for batch in model.batches[:2] for request in batch]
    assert all(adapter is first for adapter in others)
    assert len(scores.encode_seconds) == 2
    assert len(scores.ask_seconds) == 11


@pytest.mark.parametrize("method", ["in-context", "base"])
def test_what_stands_against_it_encodes_nothing(method: Method, model: RecordingModel) -> None:
    scores = score_documents(model, [_document(questions=3)], method=method)
    assert model.encoded == []
    assert all(request.adapter is None for batch in model.batches for request in batch)
    assert scores.encode_seconds == []
    shown = [STORY in request.question for batch in model.batches for request in batch]
    assert shown == [method == "in-context"] * 3


def test_a_document_too_long_for_the_prompt_loses_its_beginning(model: RecordingModel) -> None:
    context = "\n".join(f"Mary went to the kitchen {number}." for number in range(1000))
    score_documents(model, [_document(context)], method="in-context")
    ((request,),) = model.batches
    kept, question = request.question.split("\n\n")
    assert question == "Where is Mary? (0)"
    assert kept.endswith("Mary went to the kitchen 999.")
    assert "kitchen 0." not in kept
    tokens = model.start_answer([request]).prompt_tokens[0]
    assert model.base.max_positions - MAX_TOKENS - 16 <= tokens <= model.base.max_positions - MAX_TOKENS


def test_answers_that_are_trained_to_mark_their_output_may_go_on_after_a_line(
    tiny_checkpoint: Path, tiny_llama: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    marked = TemplateSettings(answer=" <output>{answer}</output>")
    settings = checkpoint.settings.model_copy(update={"templates": marked})
    model = RecordingModel(
        load_base_model(str(tiny_llama), device="cpu"), type(checkpoint)("marked", settings, checkpoint.tensors)
    )
    model.encoded, model.batches = [], []
    for method in ("perk", "base"):
        score_documents(model, [_document()], method=method)
    assert [batch[0].stop for batch in model.batches] == [("</output>",), ("\n",)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    write_documents(path, [_document(questions=2), _document("John moved to the garden."), _document("Ada is here.")])
    return path


def _check_report(report: dict[str, object], *, documents: int, questions: int) -> None:
    """The object of the contract: every key, and figures that agree."""
    assert set(report) == {
        *("checkpoint", "method", "documents", "questions", "exact_match", "f1"),
        *("by_task", "tokens", "encode_seconds", "ask_seconds"),
    }
    assert (report["documents"], report["questions"]) == (documents, questions)
    assert report["by_task"] == {
        "t": {"questions": questions, "exact_match": report["exact_match"], "f1": report["f1"]}
    }


def test_a_limit_counts_documents(data: Path, tiny_checkpoint: Path) -> None:
    _check_report(evaluate(str(tiny_checkpoint), data, method="base", limit=1), documents=1, questions=2)
    _check_report(evaluate(str(tiny_checkpoint), data, method="base"), documents=3, questions=4)


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["meta_training", "evaluate", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_the_command_prints_one_json_object_and_progress_elsewhere(
    data: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--checkpoint", str(tiny_checkpoint), "--data", str(data), "--limit", "2", "--json")
    assert _run(monkeypatch, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    _check_report(report, documents=2, questions=3)
    assert report["checkpoint"] == str(tiny_checkpoint)
    assert report["method"] == "perk"
    assert report["encode_seconds"]["mean"] > 0
    assert report["tokens"]["max"] >= report["tokens"]["mean"] > 0


def test_the_command_prints_a_table_for_people(
    data: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--checkpoint", str(tiny_checkpoint), "--data", str(data), "--method", "base")
    assert _run(monkeypatch, *arguments) == 0
    printed = capsys.readouterr().out
    assert "exact match" in printed
    assert "all" in printed


def test_the_command_reports_a_bad_line_and_a_missing_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "--checkpoint", str(tmp_path / "absent"), "--data", str(data)) == 2
    assert capsys.readouterr().err.startswith("error: checkpoint ")
    data.write_text(data.read_text() + '{"context": "x"}\n')
    assert _run(monkeypatch, "--checkpoint", str(tmp_path / "absent"), "--data", str(data)) == 2
    assert capsys.readouterr().err == "error: line 5, question: got nothing, expected a text\n"


def test_retrieval_asks_the_base_with_the_passages_that_share_words(model: RecordingModel) -> None:
    lines = [f"The code of number{n} thing is {n}." for n in range(40)]
    document = Document("\n".join(lines), (Question("What is the code of number31?", "31"),))
    score_documents(model, [document], method="retrieval")
    (request,) = model.batches[0]
    assert not model.encoded
    assert request.adapter is None
    assert lines[31] in request.question
    assert sum(line in request.question for line in lines) == 6
