"""Turns what ``evaluate --json`` printed into tables and a plot between two marks of a results page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perk.errors import InvalidInput

__all__ = ["report"]

_START, _END = "<!-- report: begin -->", "<!-- report: end -->"


class _Task(BaseModel):
    questions: int
    exact_match: float
    f1: float


class _Mean(BaseModel):
    mean: float


class _Evaluation(BaseModel):
    """One object that ``evaluate --json`` printed, and what was added to tag it."""

    model_config = ConfigDict(extra="ignore")

    checkpoint: str
    method: str
    documents: int
    by_task: dict[str, _Task]
    tokens: _Mean
    encode_seconds: _Mean
    ask_seconds: _Mean
    position: float | None = None
    ablation: dict[str, str | int | float | bool] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    task: str
    tokens: int
    evaluation: _Evaluation
    score: _Task


def report(files: Sequence[Path], page: Path) -> int:
    """Write the marked section of a page, and ``accuracy.svg`` beside it; returns the number of evaluations.

    Args:
        files: JSON or JSON Lines of evaluations; an object may add ``position`` (of the needle, 0 to 1) and
            ``ablation`` (such as ``{"rank": 16}``) to be listed by them.
        page: Markdown file; its text outside the marks stays, and the section goes to its end where it has no marks.

    Raises:
        InvalidInput: a file cannot be read, or a line is no evaluation.
    """
    evaluations = [evaluation for file in files for evaluation in _read(file)]
    rows = [
        _Row(task or "-", round(evaluation.tokens.mean), evaluation, score)
        for evaluation in evaluations
        for task, score in evaluation.by_task.items()
    ]
    parts = [_by_length(rows), _by_position(rows), _break_even(evaluations), _ablations(rows)]
    _plot(rows, page.parent / "accuracy.svg")
    section = "\n\n".join([_START, *filter(None, parts), "![accuracy by length](accuracy.svg)", _END])
    before, after = _around(page)
    page.write_text(f"{before.rstrip()}\n\n{section}\n{after}", encoding="utf-8")
    return len(evaluations)


def _read(file: Path) -> list[_Evaluation]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("file", file.name, f"a readable file in UTF-8 ({error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_Evaluation.model_validate(json.loads(line)))
            except (ValidationError, json.JSONDecodeError) as error:
                raise InvalidInput(f"{file.name}, line {number}", "something else", "what evaluate prints") from error
    return found


def _around(page: Path) -> tuple[str, str]:
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    if (_START in text) != (_END in text) or text.find(_START) > text.find(_END):
        raise InvalidInput("page", f"{page.name} with one mark, or both in the wrong order", f"{_START} … {_END}")
    before, _, rest = text.partition(_START)
    return before, rest.partition(_END)[2].lstrip("\n")


def _table(title: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    if not body:
        return ""
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), *body)]
    return f"### {title}\n\n" + "\n".join(f"| {line} |" for line in lines)


def _by_length(rows: Sequence[_Row]) -> str:
    plain = [row for row in rows if row.evaluation.position is None and not row.evaluation.ablation]
    body = [
        [
            row.task,
            f"{row.tokens:,}",
            row.evaluation.method,
            row.evaluation.checkpoint,
            str(row.evaluation.documents),
            str(row.score.questions),
            f"{row.score.exact_match:.1%}",
            f"{row.score.f1:.3f}",
        ]
        for row in sorted(plain, key=lambda row: (row.task, row.tokens, row.evaluation.method))
    ]
    head = ["task", "tokens", "method", "checkpoint", "documents", "questions", "exact match", "F1"]
    return _table("Accuracy by task, length and method", head, body)


def _by_position(rows: Sequence[_Row]) -> str:
    placed = [(row.evaluation.position, row) for row in rows if row.evaluation.position is not None]
    body = [
        [row.task, f"{row.tokens:,}", f"{position:g}", row.evaluation.method, f"{row.score.exact_match:.1%}"]
        for position, row in sorted(placed, key=lambda pair: (pair[1].task, pair[1].tokens, pair[0]))
    ]
    return _table("Accuracy by position of the needle", ["task", "tokens", "position", "method", "exact match"], body)


def _break_even(evaluations: Sequence[_Evaluation]) -> str:
    """From how many questions on encoding once costs less than the document in every prompt."""
    in_context = {_data_of(e): e for e in evaluations if e.method == "in-context"}
    body = []
    for ours in evaluations:
        theirs = in_context.get(_data_of(ours))
        if ours.method != "perk" or theirs is None:
            continue
        saved = theirs.ask_seconds.mean - ours.ask_seconds.mean
        questions = f"{ours.encode_seconds.mean / saved:.1f}" if saved > 0 else "never"
        seconds = [ours.encode_seconds.mean, ours.ask_seconds.mean, theirs.ask_seconds.mean]
        body.append(
            [", ".join(ours.by_task), f"{round(ours.tokens.mean):,}", *(f"{s:.2f}" for s in seconds), questions]
        )
    head = ["data", "tokens", "encode, s", "ask, s", "ask in context, s", "questions to break even"]
    return _table("Cost by number of questions", head, body)


def _data_of(evaluation: _Evaluation) -> tuple[tuple[str, ...], int, int]:
    """What tells the files apart that methods were scored on."""
    return tuple(sorted(evaluation.by_task)), round(evaluation.tokens.mean), evaluation.documents


def _ablations(rows: Sequence[_Row]) -> str:
    body = [
        [name, str(value), row.task, f"{row.tokens:,}", f"{row.score.exact_match:.1%}"]
        for row in rows
        for name, value in row.evaluation.ablation.items()
    ]
    return _table("Ablations", ["setting", "value", "task", "tokens", "exact match"], sorted(body))


def _plot(rows: Sequence[_Row], path: Path) -> None:
    # Takes a second to import, and only this command draws. No display and no global state: a figure of its own.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    plain = [row for row in rows if row.evaluation.position is None and not row.evaluation.ablation]
    for name in sorted({f"{row.task}, {row.evaluation.method}" for row in plain}):
        line = sorted(
            (row.tokens, row.score.exact_match) for row in plain if f"{row.task}, {row.evaluation.method}" == name
        )
        axes.plot(*zip(*line, strict=True), marker="o", label=name)
    axes.set(xlabel="tokens of a document", ylabel="exact match", ylim=(0, 1))
    if plain:
        axes.set_xscale("log", base=2)
        axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
