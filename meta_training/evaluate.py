"""Scores a checkpoint, or what stands against it, on data in the exchange format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from torch import Tensor

from meta_training.document import Document
from meta_training.exchange import read_documents
from meta_training.in_context import MAX_ANSWER_TOKENS, in_context_question
from meta_training.scoring import Scores, answer_stop
from perk import AnswerRequest, PerkModel
from perk.passage_index import PassageIndex

__all__ = ["Method", "evaluate", "score_documents"]

Method = Literal["perk", "ft-icr", "in-context", "retrieval", "base"]

_ROWS = 8
# Segments that retrieval puts into the prompt: enough for the three facts of BabiLong QA3 and some misses.
_PASSAGES = 6


def evaluate(checkpoint: str, data: Path, *, method: Method = "perk", limit: int | None = None) -> dict[str, Any]:
    """Score a checkpoint on a file.

    Args:
        checkpoint: folder, or the name of a shipped one.
        data: JSON Lines in the exchange format.
        method: ``perk`` answers from the adapter; ``ft-icr`` from a document in the prompt, with the adapter that was
            trained to; ``in-context`` asks the base with the document in its prompt (of either, its beginning is
            dropped where it is too long); ``retrieval`` asks the base with the segments that BM25 finds for the
            question; ``base`` asks the base without the document.
        limit: most documents.

    Returns:
        The object of the contract.

    Raises:
        PerkError: the data, the checkpoint or its base cannot be used.
    """
    documents = read_documents(data, limit=limit)
    console = Console(stderr=True)
    model = PerkModel.load(checkpoint, in_context=method == "ft-icr", report=console.print)
    return score_documents(model, documents, method=method, console=console).summary(checkpoint, method)


def score_documents(
    model: PerkModel, documents: Sequence[Document], *, method: Method = "perk", console: Console | None = None
) -> Scores:
    """Answer all questions of the documents, each document encoded once, and score them; `console` shows progress."""
    scores = Scores()
    templates = model.settings.templates if method == "ft-icr" else model.base.templates
    # A document in each prompt: one row at a time, as memory goes by rows times length.
    rows_at_once = 1 if method in ("ft-icr", "in-context", "retrieval") else _ROWS
    for document in track(documents, description=method, console=console, disable=console is None):
        context = document.text
        scores.tokens.append(model.count_tokens(context))
        adapter = model.initial if method == "ft-icr" else None
        if method == "perk":
            started = time.perf_counter()
            adapter = model.encode(context).adapter
            scores.encode_seconds.append(time.perf_counter() - started)
        passages = model.segment_texts(context) if method == "retrieval" else []
        index = PassageIndex(passages) if passages else None
        for start in range(0, len(document.questions), rows_at_once):
            rows = document.questions[start : start + rows_at_once]
            started = time.perf_counter()
            asked = [question.question for question in rows]
            if method in ("ft-icr", "in-context"):
                asked = [in_context_question(question, context, model.base, templates) for question in asked]
            elif index is not None:
                found = [[passages[place] for place in index.best(question, _PASSAGES)] for question in asked]
                pairs = zip(asked, found, strict=True)
                asked = [in_context_question(q, "\n".join(read), model.base, templates) for q, read in pairs]
            answers = _answer(model, adapter, asked)
            scores.ask_seconds += [(time.perf_counter() - started) / len(rows)] * len(rows)
            for question, answer in zip(rows, answers, strict=True):
                scores.add(question, answer)
    return scores


def _answer(model: PerkModel, adapter: Tensor | None, questions: Sequence[str]) -> list[str]:
    """The first line of each answer, as a base without an adapter does not know when it is done."""
    stop = answer_stop(model.settings.templates) if adapter is not None else ("\n",)
    answering = model.start_answer(
        [AnswerRequest(question, adapter=adapter, max_tokens=MAX_ANSWER_TOKENS, stop=stop) for question in questions]
    )
    texts = [""] * len(questions)
    while not answering.done:
        for delta in answering.advance():
            texts[delta.row] += delta.text
    return texts
