"""Scores a checkpoint, or what stands against it, on data in the exchange format."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from torch import Tensor

from meta_training.exchange import read_documents
from meta_training.tasks import Document, Question
from perk import AnswerRequest, PerkModel
from perk.scoring import exact_match, f1
from perk.segments import join_passages

__all__ = ["Method", "Scores", "evaluate", "score_documents"]

Method = Literal["perk", "in-context", "base"]

_ROWS = 8
_MAX_ANSWER_TOKENS = 48


@dataclass
class Scores:
    """Sums over questions and documents; `summary` turns them into the contract's object."""

    exact: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    overlap: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    tokens: list[int] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)

    def add(self, question: Question, prediction: str) -> None:
        """Score one answer."""
        accepted = (question.answer, *question.answers)
        self.exact[question.task].append(exact_match(prediction, accepted))
        self.overlap[question.task].append(f1(prediction, accepted))

    def summary(self, checkpoint: str, method: Method) -> dict[str, Any]:
        """The object that ``evaluate --json`` prints."""
        exact = [value for values in self.exact.values() for value in values]
        overlap = [value for values in self.overlap.values() for value in values]
        encoding = sum(self.encode_seconds)
        return {
            "checkpoint": checkpoint,
            "method": method,
            "documents": len(self.tokens),
            "questions": len(exact),
            "exact_match": _mean(exact),
            "f1": _mean(overlap),
            "by_task": {
                task: {
                    "questions": len(values),
                    "exact_match": _mean(values),
                    "f1": _mean(self.overlap[task]),
                }
                for task, values in sorted(self.exact.items())
            },
            "tokens": {"mean": _mean(self.tokens), "max": max(self.tokens)},
            "encode_seconds": {
                "mean": _mean(self.encode_seconds),
                "per_1k_tokens": 1000 * encoding / sum(self.tokens),
            },
            "ask_seconds": {"mean": _mean(self.ask_seconds)},
        }


def evaluate(checkpoint: str, data: Path, *, method: Method = "perk", limit: int | None = None) -> dict[str, Any]:
    """Score a checkpoint on a file.

    Args:
        checkpoint: folder, or the name of a shipped one.
        data: JSON Lines in the exchange format.
        method: ``perk`` answers from the adapter; ``in-context`` asks the base with the document in its prompt (cut
            from the left where it is too long); ``base`` asks the base without the document.
        limit: most documents.

    Returns:
        The object of the contract.
    """
    documents = read_documents(data, limit=limit)
    console = Console(stderr=True)
    model = PerkModel.load(checkpoint, report=console.print)
    return score_documents(model, documents, method=method, console=console).summary(checkpoint, method)


def score_documents(
    model: PerkModel, documents: Sequence[Document], *, method: Method = "perk", console: Console | None = None
) -> Scores:
    """Answer all questions of the documents and score them."""
    scores = Scores()
    for document in track(documents, description=method, console=console, disable=console is None):
        context = document.context if isinstance(document.context, str) else join_passages(document.context)
        scores.tokens.append(model.count_tokens(context))
        adapter: Tensor | None = None
        started = time.perf_counter()
        if method == "perk":
            adapter = model.encode(context).adapter
        scores.encode_seconds.append(time.perf_counter() - started)
        for rows in _chunks(document.questions, _ROWS):
            asked = [
                _in_context(model, context, question.question) if method == "in-context" else question.question
                for question in rows
            ]
            started = time.perf_counter()
            answers = _answer(model, adapter, asked)
            scores.ask_seconds += [(time.perf_counter() - started) / len(rows)] * len(rows)
            for question, answer in zip(rows, answers, strict=True):
                scores.add(question, answer)
    return scores


def _answer(model: PerkModel, adapter: Tensor | None, questions: Sequence[str]) -> list[str]:
    """First line of each answer: a base model without an adapter does not know that it is done."""
    requests = [
        AnswerRequest(question=question, adapter=adapter, max_tokens=_MAX_ANSWER_TOKENS, stop=("\n",))
        for question in questions
    ]
    answering = model.start_answer(requests)
    texts = [""] * len(requests)
    while not answering.done:
        for delta in answering.advance():
            texts[delta.row] += delta.text
    return texts


def _in_context(model: PerkModel, context: str, question: str) -> str:
    """Document and question in one prompt, the document's beginning dropped where both do not fit."""
    tokenizer = model.base.tokenizer
    room = model.base.max_positions - _MAX_ANSWER_TOKENS - model.count_tokens(question) - 64
    ids = tokenizer.encode(context, add_special_tokens=False, verbose=False)
    kept = tokenizer.decode(ids[-room:]) if len(ids) > room else context
    return f"{kept}\n\n{question}"


def _chunks(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
