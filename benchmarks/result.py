"""A benchmark's result on standard output, or its rows in a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["print_result", "write_rows"]


def print_result(result: Mapping[str, object], *, as_json: bool) -> None:
    """Print one JSON object on a line, or a table of two columns for people."""
    if as_json:
        print(json.dumps(result))
        return
    table = Table("measure", show_header=False)
    table.add_column(justify="right")
    for name, value in result.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console(highlight=False).print(table)


def write_rows(path: Path, rows: Sequence[DataclassInstance]) -> None:
    """Write instances of one dataclass, at least one, as CSV with its fields for columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
