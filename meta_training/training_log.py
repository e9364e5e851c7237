"""What a run writes about itself: ``log.csv`` and ``dev.csv``, and the same for TensorBoard where asked."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perk.errors import InvalidInput

__all__ = ["DEV_COLUMNS", "STEP_COLUMNS", "TrainingLog"]

STEP_COLUMNS = (
    "step",
    "seconds",
    "stage",
    "task",
    "tokens",
    "questions",
    "answer_loss",
    "exact",
    "inner_loss_before",
    "inner_loss_after",
    "gradient_norm",
    "mean_step_size",
)
DEV_COLUMNS = ("step", "questions", "exact_match", "f1")

_STEPS, _DEV = "log.csv", "dev.csv"


class TrainingLog:
    """Rows by step; a resumed run drops those it will compute again."""

    def __init__(self, folder: Path, columns: tuple[str, ...] = STEP_COLUMNS, *, tensorboard: bool) -> None:
        """Write into a folder.

        Args:
            folder: it need not exist yet.
            columns: of a step; the first is ``step``.
            tensorboard: write event files too.

        Raises:
            InvalidInput: TensorBoard is asked for and not installed.
        """
        self._folder = folder
        self._columns = columns
        self._writer: Any = None
        self._tensorboard = tensorboard
        self._purge_from: int | None = None
        if tensorboard:
            _summary_writer()

    def step(self, row: Mapping[str, str]) -> None:
        """A step; `row` has its columns, those without a number empty."""
        self._append(_STEPS, self._columns, row, "train")

    def dev(self, row: Mapping[str, str]) -> None:
        """A score on development data; `row` has `DEV_COLUMNS`."""
        self._append(_DEV, DEV_COLUMNS, row, "dev")

    def cut(self, step: int) -> None:
        """Drop rows that a killed run logged after its last saved state: they will be computed again."""
        self._purge_from = step + 1
        for name, columns in ((_STEPS, self._columns), (_DEV, DEV_COLUMNS)):
            path = self._folder / name
            if not path.exists():
                continue
            with path.open(newline="") as file:
                rows = list(csv.reader(file))
            kept = [row for row in rows[1:] if row and int(row[0]) <= step]
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([list(columns), *kept])

    def close(self) -> None:
        """Flush what TensorBoard has not written yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self, name: str, columns: tuple[str, ...], row: Mapping[str, str], group: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / name
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if new:
                writer.writeheader()
            writer.writerow(row)
        if not self._tensorboard:
            return
        if self._writer is None:
            self._writer = _summary_writer()(str(self._folder / "tensorboard"), purge_step=self._purge_from)
        for column in columns:
            if column not in ("step", "task") and row[column]:
                self._writer.add_scalar(f"{group}/{column}", float(row[column]), int(row["step"]))


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidInput("tensorboard", "true", "tensorboard installed: pip install 'perk-serve[train]'") from error
    return SummaryWriter
