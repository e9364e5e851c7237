"""``report`` writes what was measured between its marks, and leaves the rest of the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from meta_training.__main__ import main
from meta_training.document import Document, Question
from meta_training.evaluations import read_evaluations, rows_of
from meta_training.exchange import write_documents
from meta_training.report import report
from perk import InvalidInput


def _evaluation(method: str, ask: float, *, checkpoint: str = "default", **more: Any) -> dict[str, Any]:
    score = {"questions": 4, "exact_match": 0.75, "f1": 0.8}
    return {
        "checkpoint": checkpoint,
        "method": method,
        "documents": 2,
        "by_task": {"babilong-qa1": score},
        "tokens": {"mean": 1000.2, "max": 1010},
        "encode_seconds": {"mean": 9.0 if method == "perk" else 0.0, "per_1k_tokens": 9.0},
        "ask_seconds": {"mean": ask},
        **more,
    }


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_the_marked_section_holds_the_tables_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nBy hand.\n")
    data = _write(
        tmp_path / "scores.jsonl",
        _evaluation("perk", 0.5),
        _evaluation("in-context", 2.0),
        _evaluation("perk", 0.5, position=0.25),
        _evaluation("perk", 0.5, ablation={"rank": 16}),
        _evaluation("perk", 0.5, ablation={"step sizes": "fixed", "rank": 256}),
    )
    assert report([data], page) == 5
    text = page.read_text()
    assert text.startswith("# Results\n\nBy hand.\n")
    assert "| babilong-qa1 | 1,000 | perk | default | 2 | 4 | 75.0% | 0.800 |" in text
    assert "| babilong-qa1 | 1,000 | 0.25 | perk | 4 | 75.0% |" in text
    assert "| babilong-qa1 | 1,000 | 9.00 | 0.50 | 2.00 | 6.0 |" in text
    assert "| rank 16 | babilong-qa1 | 1,000 | perk | 4 | 75.0% | 0.800 |" in text
    assert "| rank 256, step sizes fixed | babilong-qa1 | 1,000 | perk | 4 | 75.0% | 0.800 |" in text
    for plot in ("accuracy", "positions", "cost", "ablations"):
        assert f"![{plot}]({plot}.svg)" in text
        assert (tmp_path / f"{plot}.svg").stat().st_size > 0

    page.write_text(text + "After.\n")
    report([data], page)
    assert page.read_text() == text + "After.\n"


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    assert report([_write(tmp_path / "scores.jsonl", _evaluation("perk", 0.5))], page) == 1
    assert {path.name for path in tmp_path.glob("*.svg")} == {"accuracy.svg"}
    assert "position" not in page.read_text()
    assert "Cost" not in page.read_text()


def test_the_same_evaluations_write_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    rows = [
        _evaluation("perk", 0.5),
        _evaluation("perk", 0.5, checkpoint="other"),
        _evaluation("in-context", 2.0),
        _evaluation("ft-icr", 2.0, position=1.0),
        _evaluation("perk", 0.5, position=0.0),
        _evaluation("perk", 0.5, ablation={"T": 2}),
        _evaluation("perk", 0.5, ablation={"T": 10}),
    ]
    written = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / name).mkdir()
        data = _write(tmp_path / f"{name}.jsonl", *order)
        report([data], tmp_path / name / "results.md")
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"results.md", "accuracy.svg", "positions.svg", "cost.svg", "ablations.svg"}
    assert b"<dc:date>" not in b"".join(written[0].values())


def test_a_question_that_costs_more_than_its_document_in_the_prompt_never_breaks_even(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    report([_write(tmp_path / "s.jsonl", _evaluation("perk", 2.5), _evaluation("in-context", 2.0))], page)
    assert "| 9.00 | 2.50 | 2.00 | never |" in page.read_text()


def test_tags_that_evaluate_adds_are_what_report_lists_by(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    write_documents(data, [Document("Mary is here.", (Question("Where is Mary?", "here"),))])
    arguments = ["--checkpoint", str(tiny_checkpoint), "--data", str(data), "--method", "base", "--json"]
    tags = ["--position", "0.5", "--tag", "T=2", "--tag", "step sizes=fixed"]
    monkeypatch.setattr(sys, "argv", ["meta_training", "evaluate", *arguments, *tags])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    scores = tmp_path / "scores.json"
    scores.write_text(capsys.readouterr().out)
    (row,) = rows_of(read_evaluations([scores]))
    assert row.evaluation.position == 0.5
    assert row.evaluation.ablation == {"T": 2, "step sizes": "fixed"}


def test_a_line_that_is_no_evaluation_is_named(tmp_path: Path) -> None:
    data = _write(tmp_path / "scores.jsonl", _evaluation("perk", 1.0), {"method": "perk"})
    with pytest.raises(InvalidInput, match=r"scores\.jsonl, line 2"):
        report([data], tmp_path / "results.md")
