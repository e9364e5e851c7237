"""Writes generated tasks in the exchange format."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meta_training.exchange import write_documents
from meta_training.tasks import TASK_NAMES, Split, build_task
from perk.base_model import DEFAULT_BASE, load_tokenizer
from perk.errors import InvalidInput

__all__ = ["MAKEABLE_TASKS", "make_data"]

# Documents of a file are there already.
MAKEABLE_TASKS = tuple(name for name in TASK_NAMES if name != "json-lines")


def make_data(
    task: str,
    out: Path,
    *,
    tokens: int = 1024,
    count: int = 50,
    seed: int = 0,
    position: float | None = None,
    split: Split = "dev",
    base: str = DEFAULT_BASE,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Draw documents of a task and write their questions; returns the number of lines.

    Args:
        task: one of `MAKEABLE_TASKS`.
        out: file to write.
        tokens: about how many tokens a document should have.
        count: number of documents.
        seed: the same seed writes the same file.
        position: place of the relevant passage, 0 to 1; None: anywhere.
        split: which half of the data to draw from; ``dev`` is never trained on.
        base: whose tokeniser counts.
        options: of the task's own, such as `records`, as in a configuration.

    Raises:
        InvalidInput: a value out of range, or an option that the task does not have.
    """
    if task not in MAKEABLE_TASKS:
        raise InvalidInput("task", repr(task), f"one of {', '.join(MAKEABLE_TASKS)}")
    if tokens < 1:
        raise InvalidInput("tokens", str(tokens), "at least 1")
    if count < 1:
        raise InvalidInput("count", str(count), "at least 1")
    if position is not None and not 0 <= position <= 1:
        raise InvalidInput("position", str(position), "from 0 to 1")
    tokenizer = load_tokenizer(base)
    drawn = build_task(
        task,
        split=split,
        count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False, verbose=False)),
        options=options,
    )
    rng = random.Random(f"{task}-{split}-{seed}")
    return write_documents(out, (drawn.draw(rng, tokens=tokens, position=position) for _ in range(count)))
