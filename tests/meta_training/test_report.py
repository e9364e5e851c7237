"""``report`` writes what was measured between its marks, and leaves the rest of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meta_training.report import report
from perk import InvalidInput


def _evaluation(method: str, ask: float, **more: Any) -> dict[str, Any]:
    score = {"questions": 4, "exact_match": 0.75, "f1": 0.8}
    return {
        "checkpoint": "default",
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
    )
    assert report([data], page) == 4
    text = page.read_text()
    assert text.startswith("# Results\n\nBy hand.\n")
    assert "| babilong-qa1 | 1,000 | perk | default | 2 | 4 | 75.0% | 0.800 |" in text
    assert "| babilong-qa1 | 1,000 | 0.25 | perk | 75.0% |" in text
    assert "| babilong-qa1 | 1,000 | 9.00 | 0.50 | 2.00 | 6.0 |" in text
    assert "| rank | 16 | babilong-qa1 | 1,000 | 75.0% |" in text
    assert (tmp_path / "accuracy.svg").stat().st_size > 0

    page.write_text(text + "After.\n")
    report([data], page)
    assert page.read_text() == text + "After.\n"


def test_a_line_that_is_no_evaluation_is_named(tmp_path: Path) -> None:
    data = _write(tmp_path / "scores.jsonl", _evaluation("perk", 1.0), {"method": "perk"})
    with pytest.raises(InvalidInput, match=r"scores\.jsonl, line 2"):
        report([data], tmp_path / "results.md")
