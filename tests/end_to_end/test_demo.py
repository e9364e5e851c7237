"""The demo on a server of its own: what it prints, and that it succeeds only if the job ran."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from service import demo


@pytest.fixture
def untrained_service(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the service and the demo use a checkpoint as it is before meta-training."""
    monkeypatch.setenv("PERK_CHECKPOINT", str(tiny_checkpoint))
    monkeypatch.setenv("PERK_DEVICE", "cpu")


def _write_example(folder: Path, name: str, text: str, questions: list[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    lines = [json.dumps(question) for question in questions]
    (folder / f"{name}.questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.usefixtures("untrained_service")
def test_the_demo_asks_every_document_and_ends_with_the_score(tmp_path: Path) -> None:
    examples = tmp_path / "examples"
    asked = [{"question": "Where is Mary?", "answer": "kitchen"}, {"question": "Where is John?", "answer": "garden"}]
    _write_example(examples, "story", "Mary went to the kitchen. John moved to the garden.", asked)
    shown = [{"question": "When does the train leave?", "answer": "at seven", "answers": ["seven"]}]
    _write_example(examples, "article", "The train to the north leaves at seven in the morning.", shown)
    output = io.StringIO()

    demo.run(examples, Console(file=output, width=160))

    printed = output.getvalue()
    lines = printed.splitlines()
    for question in (*asked, *shown):
        row = next(line for line in lines if str(question["question"]) in line)
        assert str(question["answer"]) in row
        assert re.search(r"(yes|no) +│ +\d+ +│$", row), "right or wrong, and the milliseconds"
    assert re.search(r"^story: \d+ tokens in \d+ segments, 2 steps in [\d.]+ s, loss [\d.]+ → [\d.]+$", printed, re.M)
    assert re.search(r"^article: . of 1 right, without the document .* \(not counted\)$", printed, re.M)
    assert re.fullmatch(r"without the document: \d of 2 answers right", lines[-2])
    assert re.fullmatch(r"demo: \d of 2 answers right", lines[-1])


def test_a_server_that_cannot_start_fails_the_demo_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = tmp_path / "examples"
    _write_example(
        examples, "story", "Mary went to the kitchen.", [{"question": "Where is Mary?", "answer": "kitchen"}]
    )
    monkeypatch.setattr(demo, "EXAMPLES", examples)
    monkeypatch.setenv("PERK_CHECKPOINT", str(tmp_path / "no-such-checkpoint"))

    assert demo.main() == 1

    error = capsys.readouterr().err
    assert "the job did not run: the server ended" in error
    assert "no-such-checkpoint" in error


@pytest.mark.parametrize(
    ("files", "message"),
    [([], "no documents"), (["story.txt"], "story.txt has no story.questions.jsonl beside it")],
)
def test_examples_that_are_not_complete_are_refused(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("Mary went to the kitchen.")
    with pytest.raises(demo.DemoError, match=message):
        demo.read_examples(tmp_path)
