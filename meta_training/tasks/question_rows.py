"""Rows of a published question set, read through ``datasets``, which is optional."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meta_training.tasks.task import Split
from perk.errors import InvalidInput

__all__ = ["QuestionRows"]

# Published sets name their second half so.
_SPLITS: dict[Split, str] = {"train": "train", "dev": "validation"}


class QuestionRows:
    """The rows of one split, on disk: a row is read where it is asked for."""

    def __init__(self, source: str, *, config: str | None, split: Split) -> None:
        """Open a set; a hub id is downloaded once, into the cache of ``datasets``.

        Args:
            source: hub id or folder.
            config: which of its configurations; None: the only one.
            split: ``train`` or, for ``dev``, its rows for validation.

        Raises:
            InvalidInput: ``datasets`` is not installed, or it finds no such set.
        """
        try:
            import datasets
        except ImportError as error:
            raise InvalidInput("source", source, "datasets installed: pip install 'perk-serve[data]'") from error
        try:
            self._rows = datasets.load_dataset(source, config, split=_SPLITS[split])
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            limit = f"a question set with configuration {config} and split {_SPLITS[split]} ({type(error).__name__})"
            raise InvalidInput("source", source, limit) from error
        self.source = source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row: Mapping[str, Any] = self._rows[index]
        return row
