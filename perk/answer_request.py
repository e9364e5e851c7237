"""One question, and what it takes to answer it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from perk.errors import InvalidInput

__all__ = ["AnswerRequest"]


@dataclass(frozen=True)
class AnswerRequest:
    """One question.

    Attributes:
        question: its text.
        adapter: flat buffer ``[P]`` of the document asked, or None to ask the base model alone.
        max_tokens: most tokens of the answer, what is recalled before it not counted.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        top_p: sample from the smallest set of tokens with at least this probability.
        seed: of the sampling; None draws one.
        stop: texts that end the answer; they are not part of it.
    """

    question: str
    adapter: Tensor | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidInput("question", "no visible character", "at least one visible character")
        if self.max_tokens < 1:
            raise InvalidInput("max_tokens", str(self.max_tokens), "at least 1")
        if not 0 <= self.temperature < math.inf:
            raise InvalidInput("temperature", str(self.temperature), "a finite number, at least 0")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p", str(self.top_p), "above 0, at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InvalidInput("seed", str(self.seed), "0 to 2^63 - 1")
        if any(not text for text in self.stop):
            raise InvalidInput("stop", "an empty string", "texts of at least one character")
