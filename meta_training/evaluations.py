"""What ``evaluate --json`` printed, read back to be reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perk.errors import InvalidInput

__all__ = ["Evaluation", "Row", "TaskScore", "read_evaluations", "rows_of"]


class TaskScore(BaseModel):
    """Scores of one task's questions."""

    questions: int
    exact_match: float
    f1: float


class _Mean(BaseModel):
    mean: float


class Evaluation(BaseModel):
    """One object that ``evaluate --json`` printed, and what was added to tag it."""

    model_config = ConfigDict(extra="ignore")

    checkpoint: str
    method: str
    documents: int
    by_task: dict[str, TaskScore]
    tokens: _Mean
    encode_seconds: _Mean
    ask_seconds: _Mean
    position: float | None = None
    """Where the passage asked about stands, 0 to 1."""
    ablation: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Settings by which this run differs from others, such as ``{"rank": 16}``."""


@dataclass(frozen=True)
class Row:
    """One task of an evaluation.

    Attributes:
        task: its name; "-" where the data names none.
        tokens: mean length of the documents, rounded.
        evaluation: all of it.
        score: of this task.
    """

    task: str
    tokens: int
    evaluation: Evaluation
    score: TaskScore

    @property
    def plain(self) -> bool:
        """Whether it belongs to no ablation and pins no position."""
        return self.evaluation.position is None and not self.evaluation.ablation


def read_evaluations(files: Sequence[Path]) -> list[Evaluation]:
    """Read JSON or JSON Lines.

    Raises:
        InvalidInput: a file cannot be read, or a line is no evaluation.
    """
    return [evaluation for file in files for evaluation in _read(file)]


def rows_of(evaluations: Sequence[Evaluation]) -> list[Row]:
    """Evaluations by task, in an order that does not depend on the files'."""
    rows = [
        Row(task or "-", round(evaluation.tokens.mean), evaluation, score)
        for evaluation in evaluations
        for task, score in evaluation.by_task.items()
    ]
    return sorted(rows, key=lambda row: (row.task, row.tokens, row.evaluation.method, row.evaluation.checkpoint))


def _read(file: Path) -> list[Evaluation]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("file", file.name, f"a readable file in UTF-8 ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(Evaluation.model_validate(json.loads(line)))
            except (ValidationError, json.JSONDecodeError) as error:
                raise InvalidInput(f"{file.name}, line {number}", "something else", "what evaluate prints") from error
    return found
