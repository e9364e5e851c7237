"""How the learning rates of outer steps rise and fall."""

from __future__ import annotations

import math

__all__ = ["rate_share"]


def rate_share(step: int, total: int, *, warmup: int, least: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then a cosine down to `least` at the last of `total`.

    Args:
        step: from 0.
        total: steps of the run.
        warmup: steps of the rise.
        least: share that is left at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))
