"""How much of a long text an adapter holds: documents of a file read as one, recalled, and asked about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from meta_training.document import Document
from meta_training.exchange import read_documents
from meta_training.in_context import MAX_ANSWER_TOKENS
from meta_training.scoring import Scores, answer_stop
from perk import PerkModel
from perk.errors import InvalidInput
from perk.parts import part_name, to_one_line
from perk.segments import join_passages

__all__ = ["recall", "recall_documents"]


def recall(checkpoint: str, data: Path, *, documents: int) -> dict[str, Any]:
    """Read the first documents of a file as one text, each a paragraph or some, see `recall_documents`.

    Args:
        checkpoint: folder, or the name of a shipped one.
        data: JSON Lines in the exchange format.
        documents: of the file, to read.

    Raises:
        PerkError: the data, the checkpoint or its base cannot be used.
    """
    read = read_documents(data, limit=documents)
    console = Console(stderr=True)
    model = PerkModel.load(checkpoint, report=console.print)
    return {"checkpoint": checkpoint} | recall_documents(model, read, console=console)


def recall_documents(
    model: PerkModel, documents: Sequence[Document], *, console: Console | None = None
) -> dict[str, Any]:
    """Encode documents as one text of numbered parts, and ask all their questions one by one.

    Args:
        model: what encodes and answers.
        documents: one text in all.
        console: shows progress.

    Returns:
        ``documents``, ``parts``, ``tokens``, ``steps`` and ``encode_seconds``; ``recalled``, the parts that are told to
        the word, and ``words``, the mean share of their words that are told in order; ``questions``, and the shares of
        them for which a part of the document asked about was read (``chosen``) and whose answers are right
        (``exact_match``, ``f1``); seconds of the first question, which waits for all parts, and the mean of the others.

    Raises:
        InvalidInput: the text is not read as parts (`perk.parts`).
    """
    text = join_passages([document.text for document in documents])
    parts = _parts(model, text)
    encoded = model.encode(text)
    scores, supports = Scores(), []
    stop = answer_stop(model.settings.templates)
    asked = [(document, question) for document in documents for question in document.questions]
    for _, question in track(asked, description="recall", console=console, disable=console is None):
        started = time.perf_counter()
        answer = model.answer(encoded.adapter, question.question, max_tokens=MAX_ANSWER_TOKENS, stop=stop)
        scores.ask_seconds.append(time.perf_counter() - started)
        scores.add(question, answer.text)
        supports.append(answer.support)
    # Nothing is kept where the adapter knows of no parts; where it is wrong about their number, some are missing.
    said = model.readers.recalled.get(encoded.adapter) or ()
    pairs = list(zip_longest(parts, said[: len(parts)], fillvalue=""))
    chosen = 0
    for (document, _), support in zip(asked, supports, strict=True):
        own = _plain(document.text)
        chosen += bool(support) and any(told == support and part in own for part, told in pairs)
    summary = scores.summary("", "perk")
    first, *others = scores.ask_seconds
    return {
        "documents": len(documents),
        "parts": len(parts),
        "tokens": model.count_tokens(text),
        "steps": encoded.steps,
        "encode_seconds": encoded.seconds,
        "recalled": sum(part == _plain(told) for part, told in pairs),
        "words": sum(_share(part, told) for part, told in pairs) / len(parts),
        "questions": len(asked),
        "chosen": chosen / len(asked),
        "exact_match": summary["exact_match"],
        "f1": summary["f1"],
        "first_ask_seconds": first,
        "ask_seconds": sum(others) / max(1, len(others)),
    }


def _parts(model: PerkModel, text: str) -> list[str]:
    """What each part says, as it is read."""
    read = [_plain(told) for told in model.segment_texts(text)]
    names = [part_name(number, len(read)) for number in range(1, len(read) + 1)]
    if not all(part.startswith(name) for part, name in zip(read, names, strict=True)):
        limit = "paragraphs that the checkpoint reads as parts, not too many of them (see docs/guide.md)"
        raise InvalidInput("documents", f"a text of {len(read)} segments", limit)
    return [part.removeprefix(f"{name} ") for part, name in zip(read, names, strict=True)]


def _plain(text: str) -> str:
    """A text on one line, as parts are told, with single spaces."""
    return " ".join(to_one_line(text.strip()).split())


def _share(expected: str, told: str) -> float:
    """Share of the words of a part that are told, in order."""
    words = expected.split()
    matching = SequenceMatcher(None, words, told.split(), autojunk=False).get_matching_blocks()
    return sum(block.size for block in matching) / len(words)
