"""Asking: time to the first token and to the last, for one question and for eight together, one adapter a row.

The adapters are the checkpoint's initialisation: what they hold changes the answer, and not the time a token takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from benchmarks.result import print_result
from perk.answer import AnswerRequest
from perk.errors import InvalidInput
from perk.perk_model import PerkModel

__all__ = ["main", "run"]

_ROWS = (1, 8)
_MAX_TOKENS = 16


def run(checkpoint: str = "default", repeats: int = 5) -> dict[str, float]:
    """Measure on the CPU.

    Args:
        checkpoint: folder, or the name of a shipped one.
        repeats: timed runs of each batch; one of each goes before, untimed.

    Returns:
        For R = 1 and R = 8 rows, medians: ``rows_R_first_token_ms`` and ``rows_R_total_ms`` from the call to the first
        and to the last token, and ``rows_R_tokens``, the tokens of the longest answer (at most 16).

    Raises:
        InvalidInput: `repeats` is not positive.
        PerkError: the checkpoint or its base cannot be loaded.
    """
    if repeats < 1:
        raise InvalidInput("repeats", str(repeats), "at least 1")
    model = PerkModel.load(checkpoint, device="cpu")
    result: dict[str, float] = {}
    for rows in _ROWS:
        requests = _requests(model, rows)
        _answer(model, requests)
        timings = [_answer(model, requests) for _ in range(repeats)]
        result[f"rows_{rows}_first_token_ms"] = 1000 * statistics.median(first for first, _, _ in timings)
        result[f"rows_{rows}_total_ms"] = 1000 * statistics.median(total for _, total, _ in timings)
        result[f"rows_{rows}_tokens"] = timings[0][2]
    return result


def main(checkpoint: str, as_json: bool) -> None:
    """Ask one question, and eight together."""
    print_result(run(checkpoint), as_json=as_json)


def _requests(model: PerkModel, rows: int) -> list[AnswerRequest]:
    adapter = model.checkpoint.tensors["initial"]
    return [
        AnswerRequest(f"What is the grade of the student with ID {3109990 + row}?", adapter, max_tokens=_MAX_TOKENS)
        for row in range(rows)
    ]


def _answer(model: PerkModel, requests: Sequence[AnswerRequest]) -> tuple[float, float, int]:
    """Seconds to the first token and to the end, and tokens of the longest answer."""
    started = time.perf_counter()
    answering = model.start_answer(requests)
    answering.advance()
    first = time.perf_counter() - started
    while not answering.done:
        answering.advance()
    return first, time.perf_counter() - started, max(answering.completion_tokens)
