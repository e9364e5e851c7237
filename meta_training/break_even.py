"""From how many questions on encoding a document once costs less than reading it in every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meta_training.evaluations import Evaluation

__all__ = ["BreakEven", "break_evens"]


@dataclass(frozen=True)
class BreakEven:
    """Costs of the same data by either way, in seconds.

    Attributes:
        data: its tasks.
        tokens: mean length of the documents, rounded.
        encode: of a document.
        ask: of a question to an adapter.
        in_context: of a question with the document in its prompt.
    """

    data: str
    tokens: int
    encode: float
    ask: float
    in_context: float

    @property
    def questions(self) -> float | None:
        """Where both cost the same; None where a question to an adapter saves nothing."""
        saved = self.in_context - self.ask
        return self.encode / saved if saved > 0 else None


def break_evens(evaluations: Sequence[Evaluation]) -> list[BreakEven]:
    """Of all data that were both encoded and asked in context."""
    whole = [evaluation for evaluation in evaluations if evaluation.position is None and not evaluation.ablation]
    in_context = {_data_of(evaluation): evaluation for evaluation in whole if evaluation.method == "in-context"}
    found = [
        BreakEven(
            data=", ".join(sorted(ours.by_task)),
            tokens=round(ours.tokens.mean),
            encode=ours.encode_seconds.mean,
            ask=ours.ask_seconds.mean,
            in_context=in_context[_data_of(ours)].ask_seconds.mean,
        )
        for ours in whole
        if ours.method == "perk" and _data_of(ours) in in_context
    ]
    return sorted(found, key=lambda cost: (cost.data, cost.tokens, cost.encode))


def _data_of(evaluation: Evaluation) -> tuple[tuple[str, ...], int, int]:
    """What tells the files apart that methods were scored on."""
    return tuple(sorted(evaluation.by_task)), round(evaluation.tokens.mean), evaluation.documents
