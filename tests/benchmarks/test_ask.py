"""`perk bench ask`: times of one question and of eight together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ask
from perk.errors import InvalidInput


def test_the_first_token_comes_before_the_last(tiny_checkpoint: Path) -> None:
    result = ask.run(checkpoint=str(tiny_checkpoint), repeats=1)

    for rows in (1, 8):
        assert 1 <= result[f"rows_{rows}_tokens"] <= 16
        assert 0 < result[f"rows_{rows}_first_token_ms"] <= result[f"rows_{rows}_total_ms"]
    assert len(result) == 6


def test_the_command_prints_one_json_object(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask.main(checkpoint=str(tiny_checkpoint), as_json=True)

    (line,) = capsys.readouterr().out.splitlines()
    assert {"rows_1_total_ms", "rows_8_total_ms"} <= set(json.loads(line))


def test_no_repeats_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(InvalidInput, match="repeats: got 0, expected at least 1"):
        ask.run(checkpoint=str(tiny_checkpoint), repeats=0)
