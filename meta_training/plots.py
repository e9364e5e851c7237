"""Plots of evaluations: SVG files that hold no date, the same for the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from meta_training.break_even import BreakEven
from meta_training.evaluations import Row
from perk.errors import InvalidInput

__all__ = ["draw_plots"]

_WIDTH, _HEIGHT = 4.2, 3.4
# Panels beside each other before the next line of them.
_ACROSS = 3
# How many times the questions of the break-even point the cost is drawn for; without one, up to so many questions.
_BEYOND, _QUESTIONS = 2, 20

Draw = Callable[[Any], None]


def draw_plots(rows: Sequence[Row], costs: Sequence[BreakEven], folder: Path) -> set[str]:
    """Write the plots that the rows have something for into a folder; returns their names, without ``.svg``.

    Args:
        rows: in order.
        costs: of encoding against prompts.
        folder: which exists.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    plots = {
        "accuracy": _by_length(rows),
        "positions": _by_position(rows),
        "cost": _by_questions(costs),
        "ablations": _by_setting(rows),
    }
    drawn = {name: panels for name, panels in plots.items() if panels}
    for name, panels in drawn.items():
        _write(panels, folder / f"{name}.svg")
    return set(drawn)


def _accuracy_panel(title: str, xlabel: str, lines: dict[str, list[tuple[float, float]]], *, doubling: bool) -> Draw:
    """A line a method; `doubling`: places on the axis double instead of growing evenly."""

    def draw(axes: Any) -> None:
        for method, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=method)
        axes.set(title=title, xlabel=xlabel, ylabel="exact match", ylim=(-0.03, 1.03))
        if doubling:
            axes.set_xscale("log", base=2)
        axes.legend(fontsize="small")

    return draw


def _by_length(rows: Sequence[Row]) -> list[Draw]:
    plain = [row for row in rows if row.plain]
    # Two checkpoints of one method are two lines.
    known = {(row.evaluation.method, row.evaluation.checkpoint) for row in plain}
    several = {method for method, _ in known if sum(method == other for other, _ in known) > 1}
    points = [(row.task, (_line_name(row, several), (float(row.tokens), row.score.exact_match))) for row in plain]
    return [
        _accuracy_panel(task, "tokens of a document", _grouped(found), doubling=True)
        for task, found in _grouped(points).items()
    ]


def _by_position(rows: Sequence[Row]) -> list[Draw]:
    placed = [
        (f"{row.task}, {row.tokens:,} tokens", (row.evaluation.method, (position, row.score.exact_match)))
        for row in rows
        if (position := row.evaluation.position) is not None
    ]
    return [
        _accuracy_panel(title, "position of the needle", _grouped(found), doubling=False)
        for title, found in _grouped(placed).items()
    ]


def _by_questions(costs: Sequence[BreakEven]) -> list[Draw]:
    def panel(cost: BreakEven) -> Draw:
        def draw(axes: Any) -> None:
            asked = [0.0, _QUESTIONS if cost.questions is None else max(_BEYOND * cost.questions, 1.0)]
            axes.plot(asked, [cost.encode + cost.ask * count for count in asked], label="encoded once")
            axes.plot(asked, [cost.in_context * count for count in asked], label="in every prompt")
            if cost.questions is not None:
                axes.axvline(cost.questions, color="0.7", linewidth=1)
            axes.set(title=f"{cost.data}, {cost.tokens:,} tokens", xlabel="questions", ylabel="seconds in all")
            axes.legend(fontsize="small")

        return draw

    return [panel(cost) for cost in costs]


def _by_setting(rows: Sequence[Row]) -> list[Draw]:
    def panel(names: str, lines: dict[str, list[tuple[str, float]]]) -> Draw:
        def draw(axes: Any) -> None:
            values = sorted({value for points in lines.values() for value, _ in points}, key=_numbers_first)
            for line, points in lines.items():
                by_value = dict(points)
                places = [place for place, value in enumerate(values) if value in by_value]
                axes.plot(places, [by_value[values[place]] for place in places], marker="o", label=line)
            axes.set_xticks(range(len(values)), values)
            axes.set(xlabel=names, ylabel="exact match", ylim=(-0.03, 1.03))
            axes.legend(fontsize="small")

        return draw

    found = []
    for row in rows:
        tags = sorted(row.evaluation.ablation.items())
        if tags:
            value = ", ".join(str(value) for _, value in tags)
            line = f"{row.task}, {row.tokens:,} tokens, {row.evaluation.method}"
            found.append((", ".join(name for name, _ in tags), (line, (value, row.score.exact_match))))
    return [panel(names, _grouped(lines)) for names, lines in _grouped(found).items()]


def _line_name(row: Row, several: set[str]) -> str:
    method, checkpoint = row.evaluation.method, row.evaluation.checkpoint
    return f"{method}, {checkpoint}" if method in several else method


def _numbers_first(value: str) -> tuple[float, str]:
    """Numbers by their size, then words by their letters."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _grouped(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    """Values by name, both in order."""
    groups: defaultdict[str, list[Any]] = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return {name: sorted(groups[name]) for name in sorted(groups)}


def _write(panels: Sequence[Draw], path: Path) -> None:
    # Takes a second to import, and only this command draws. No display: a figure of its own.
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput("report", path.name, "matplotlib installed: pip install 'perk-serve[train]'") from error
    across = min(len(panels), _ACROSS)
    down = -(-len(panels) // across)
    # Ids inside the file come from this salt instead of a random one.
    with rc_context({"svg.hashsalt": path.name}):
        figure = Figure(figsize=(_WIDTH * across, _HEIGHT * down), layout="constrained")
        places = figure.subplots(down, across, squeeze=False).flat
        for draw, axes in zip(panels, places, strict=False):
            draw(axes)
        for axes in list(figure.axes)[len(panels) :]:
            axes.remove()
        figure.savefig(path, metadata={"Date": None, "Creator": None})
