"""Which task a document of a stage is of: shares that hold over any few steps, not on average alone.

Independent draws left a task of three parts in nine out for nine steps, and what it had taught was gone. Multiples of
the golden ratio, modulo one, spread evenly over any stretch of them, and each follows from its number: a resumed run
goes on as it would have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

__all__ = ["pick_task"]

_GOLDEN = (5**0.5 - 1) / 2


def pick_task(weights: Sequence[float], number: int, offset: float) -> int:
    """Index of a task.

    Args:
        weights: of the stage's tasks, relative to one another.
        number: of the document in its stage, from 0.
        offset: where the sequence begins, 0 to 1.
    """
    ends = list(accumulate(weights))
    place = (offset + number * _GOLDEN) % 1.0 * ends[-1]
    return min(bisect_right(ends, place), len(ends) - 1)
