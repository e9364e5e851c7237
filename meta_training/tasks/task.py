"""What a task is: a source of documents, split for training and development."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal, Protocol

from meta_training.document import Document

__all__ = ["CountTokens", "Split", "Task"]

Split = Literal["train", "dev"]
CountTokens = Callable[[str], int]


class Task(Protocol):
    """Draws documents without end."""

    name: str

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """A fresh document.

        Args:
            rng: source of all randomness.
            tokens: about how many tokens the document should have.
            position: place of the relevant passage, 0 (start) to 1 (end); None: anywhere.

        Raises:
            InvalidInput: the task has no such document.
        """
        ...
