"""The user's own documents: any file in the exchange format."""

from __future__ import annotations

import random
from pathlib import Path

from meta_training.document import Document
from meta_training.exchange import read_documents
from meta_training.tasks.task import CountTokens, Split
from perk.errors import InvalidInput

__all__ = ["JsonLines"]

_DEV_SHARE = 0.1


class JsonLines:
    """Documents of a file, as they are; the last tenth of them is for development."""

    def __init__(self, *, split: Split, count_tokens: CountTokens, path: str | Path) -> None:
        """Read the file.

        Raises:
            InvalidInput: the file is wrong, or has too few documents for the split.
        """
        self.name = "json-lines"
        documents = read_documents(Path(path))
        # One document can be trained on; two or more leave one for development.
        first_dev = min(round(len(documents) * (1 - _DEV_SHARE)), max(len(documents) - 1, 1))
        chosen = documents[first_dev:] if split == "dev" else documents[:first_dev]
        if not chosen:
            raise InvalidInput("path", f"{Path(path).name} with one document", "at least two documents for split dev")
        self._documents = [(document, count_tokens(document.text)) for document in chosen]

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """One of the documents that have at most `tokens` tokens.

        Raises:
            InvalidInput: none is so short, or a position is asked for.
        """
        if position is not None:
            raise InvalidInput("position", str(position), "none: documents of a file are taken as they are")
        short = [document for document, length in self._documents if length <= tokens]
        if not short:
            shortest = min(length for _, length in self._documents)
            raise InvalidInput("tokens", str(tokens), f"at least {shortest}, the length of the shortest document")
        return rng.choice(short)
