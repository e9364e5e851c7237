"""How many programs a launch is cut into."""

from __future__ import annotations

__all__ = ["PROGRAMS", "count_parts"]

# Programs that fill the multiprocessors of the GPUs in question (an A100 has 108, an H100 132) about once.
PROGRAMS = 128


def count_parts(pieces: int) -> int:
    """Into how many parts to cut each of so many equal pieces of work, for all of them to be `PROGRAMS` about."""
    return max(1, PROGRAMS // max(1, pieces))
