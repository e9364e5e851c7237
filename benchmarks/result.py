"""A benchmark's result on standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

__all__ = ["print_result"]


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
