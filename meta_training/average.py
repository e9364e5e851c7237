"""The mean of checkpoints: runs from the same start on other data, each of which has learned a part of it.

(Wortsman et al. 2022 average fine-tuned models, arXiv 2203.05482, and what is fine-tuned with what it began as, which
keeps what that could do, arXiv 2109.01903; Stich 2018, arXiv 1805.09767, processes that go on by themselves between
averages.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput
from perk.readers import READERS

__all__ = ["average"]


def average(checkpoints: Sequence[Checkpoint], shares: Sequence[float] | None = None) -> Checkpoint:
    """Average every tensor of checkpoints that began as one.

    Step sizes are averaged as they are learned, by their logarithms.

    Args:
        checkpoints: of one base, one adapter and one inner loop. How texts and questions are written and read
            (segments, templates and readers) may differ: the first's are taken.
        shares: of each in the mean, adding up to 1; None: all alike.

    Raises:
        InvalidInput: no checkpoint is given, their settings differ, or the shares are not theirs.
    """
    if not checkpoints:
        raise InvalidInput("checkpoints", "none", "one or more")
    first = checkpoints[0]
    for other in checkpoints[1:]:
        theirs = other.settings.model_copy(
            update={"segments": first.settings.segments, "templates": first.settings.templates}
        )
        if theirs != first.settings:
            raise InvalidInput("checkpoints", repr(other.name), f"the base, adapter and inner loop of {first.name!r}")
    if shares is None:
        shares = [1 / len(checkpoints)] * len(checkpoints)
    if len(shares) != len(checkpoints):
        raise InvalidInput("shares", str(len(shares)), f"one for each of {len(checkpoints)} checkpoints")
    if any(share < 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise InvalidInput("shares", " + ".join(map(str, shares)), "numbers from 0 that add up to 1")
    weights = torch.tensor(shares)
    tensors = {
        name: tensor
        if name in READERS
        else torch.tensordot(weights, torch.stack([c.tensors[name] for c in checkpoints]), dims=1)
        for name, tensor in first.tensors.items()
    }
    return replace(first, tensors=tensors)
