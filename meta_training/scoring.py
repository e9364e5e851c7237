"""Scores of answers, summed over questions and documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from meta_training.document import Question
from perk.scoring import exact_match, f1
from perk.settings import TemplateSettings

__all__ = ["OUTPUT_END", "OUTPUT_START", "Scores", "answer_stop", "extract_output"]

# The reference code's target: `<support>…</support>\n<output>answer</output>`.
OUTPUT_START, OUTPUT_END = "<output>", "</output>"


def extract_output(text: str) -> str:
    """The answer of a text that marks it as the paper's targets do; any other text as it is."""
    _, started, after = text.rpartition(OUTPUT_START)
    return after.partition(OUTPUT_END)[0].strip() if started else text


def answer_stop(templates: TemplateSettings) -> tuple[str, ...]:
    """What ends an adapter's answer: its line does, unless answers are trained to mark their output."""
    return (OUTPUT_END,) if OUTPUT_END in templates.answer else ("\n",)


@dataclass
class Scores:
    """What was measured, item by item; `summary` turns it into the contract's object.

    Attributes:
        exact: whether each answer is exact, by task.
        overlap: F1 of each answer, by task.
        tokens: of each document.
        encode_seconds: of each document that was encoded.
        ask_seconds: of each question: an equal share of its batch's time.
    """

    exact: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    overlap: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: list[int] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)

    def add(self, question: Question, prediction: str) -> None:
        """Score one answer: the best over the accepted ones."""
        accepted = (question.answer, *question.answers)
        answer = extract_output(prediction)
        self.exact[question.task].append(exact_match(answer, accepted))
        self.overlap[question.task].append(f1(answer, accepted))

    def summary(self, checkpoint: str, method: str) -> dict[str, Any]:
        """The object that ``evaluate --json`` prints; times are 0 where nothing was encoded."""
        return {
            "checkpoint": checkpoint,
            "method": method,
            "documents": len(self.tokens),
            "questions": sum(len(values) for values in self.exact.values()),
            "exact_match": _mean([value for values in self.exact.values() for value in values]),
            "f1": _mean([value for values in self.overlap.values() for value in values]),
            "by_task": {
                task: {"questions": len(values), "exact_match": _mean(values), "f1": _mean(self.overlap[task])}
                for task, values in sorted(self.exact.items())
            },
            "tokens": {"mean": _mean(self.tokens), "max": max(self.tokens, default=0)},
            "encode_seconds": {
                "mean": _mean(self.encode_seconds),
                "per_1k_tokens": 1000 * sum(self.encode_seconds) / max(sum(self.tokens), 1),
            },
            "ask_seconds": {"mean": _mean(self.ask_seconds)},
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
