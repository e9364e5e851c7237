"""How many programs a launch is cut into, and how much of what is read again a cache is trusted to keep."""

from __future__ import annotations

__all__ = ["CACHED_BYTES", "PROGRAMS", "count_parts"]

# Programs that fill the multiprocessors of the GPUs in question (an A100 has 108, an H100 132) about once.
PROGRAMS = 128

# Bytes of a tensor that is read again soon, at most: half an L2 cache of 40 MB (A100) or 50 MB (H100), whose other half
# what passes by meanwhile may have.
CACHED_BYTES = 24 << 20


def count_parts(pieces: int) -> int:
    """Into how many parts to cut each of so many equal pieces of work, for all of them to be `PROGRAMS` about."""
    return max(1, PROGRAMS // max(1, pieces))
