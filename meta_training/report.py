"""Turns what ``evaluate --json`` printed into tables and plots between two marks of a results page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meta_training.break_even import BreakEven, break_evens
from meta_training.evaluations import Row, read_evaluations, rows_of
from meta_training.plots import draw_plots
from perk.errors import InvalidInput

__all__ = ["report"]

_START, _END = "<!-- report: begin -->", "<!-- report: end -->"


def report(files: Sequence[Path], page: Path) -> int:
    """Write the marked section of a page, and its plots beside it; returns the number of evaluations.

    The same evaluations write the same bytes, in whatever order their files are given. Sections and plots of which
    nothing was measured are left out: ``accuracy.svg`` (by task, length and method), ``positions.svg`` (of the
    needle), ``cost.svg`` (by number of questions) and ``ablations.svg``.

    Args:
        files: JSON or JSON Lines of evaluations; an object may add ``position`` (of the needle, 0 to 1) and
            ``ablation`` (such as ``{"rank": 16}``) to be listed by them.
        page: Markdown file; its text outside the marks stays, and the section goes to its end where it has no marks.

    Raises:
        InvalidInput: a file cannot be read, or a line is no evaluation.
    """
    evaluations = read_evaluations(files)
    rows = rows_of(evaluations)
    costs = break_evens(evaluations)
    sections = {
        "accuracy": _by_length(rows),
        "positions": _by_position(rows),
        "cost": _by_questions(costs),
        "ablations": _ablations(rows),
    }
    before, after = _around(page)
    drawn = draw_plots(rows, costs, page.parent)
    parts = [_START]
    for name, table in sections.items():
        if table:
            parts += [table, *([f"![{name}]({name}.svg)"] if name in drawn else [])]
    section = "\n\n".join([*parts, _END])
    page.write_text(f"{before.rstrip()}\n\n{section}\n{after}", encoding="utf-8")
    return len(evaluations)


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


def _by_length(rows: Sequence[Row]) -> str:
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
        for row in rows
        if row.plain
    ]
    head = ["task", "tokens", "method", "checkpoint", "documents", "questions", "exact match", "F1"]
    return _table("Accuracy by task, length and method", head, body)


def _by_position(rows: Sequence[Row]) -> str:
    placed = [
        ((row.task, row.tokens, position, row.evaluation.method), row)
        for row in rows
        if (position := row.evaluation.position) is not None
    ]
    body = [
        [task, f"{tokens:,}", f"{position:g}", method, str(row.score.questions), f"{row.score.exact_match:.1%}"]
        for (task, tokens, position, method), row in sorted(placed, key=lambda pair: pair[0])
    ]
    head = ["task", "tokens", "position", "method", "questions", "exact match"]
    return _table("Accuracy by position of the needle", head, body)


def _by_questions(costs: Sequence[BreakEven]) -> str:
    body = [
        [
            cost.data,
            f"{cost.tokens:,}",
            *(f"{seconds:.2f}" for seconds in (cost.encode, cost.ask, cost.in_context)),
            "never" if cost.questions is None else f"{cost.questions:.1f}",
        ]
        for cost in costs
    ]
    head = ["data", "tokens", "encode, s", "ask, s", "ask in context, s", "questions to break even"]
    return _table("Cost by number of questions", head, body)


def _ablations(rows: Sequence[Row]) -> str:
    body = [
        [
            ", ".join(f"{name} {value}" for name, value in sorted(row.evaluation.ablation.items())),
            row.task,
            f"{row.tokens:,}",
            row.evaluation.method,
            str(row.score.questions),
            f"{row.score.exact_match:.1%}",
            f"{row.score.f1:.3f}",
        ]
        for row in rows
        if row.evaluation.ablation
    ]
    head = ["settings", "task", "tokens", "method", "questions", "exact match", "F1"]
    return _table("Ablations", head, sorted(body))
