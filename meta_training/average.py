"""The mean of checkpoints: runs from the same start on other data, each of which has learned a part of it.

(Wortsman et al. 2022, arXiv 2203.05482, average fine-tuned models; Stich 2018, arXiv 1805.09767, processes that go on
by themselves between averages.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput

__all__ = ["average"]


def average(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Average every tensor of checkpoints that began as one.

    Step sizes are averaged as they are learned, by their logarithms.

    Raises:
        InvalidInput: none is given, or their settings differ.
    """
    if not checkpoints:
        raise InvalidInput("checkpoints", "none", "one or more")
    first, *others = checkpoints
    for other in others:
        if other.settings != first.settings:
            raise InvalidInput("checkpoints", repr(other.name), f"the settings of {first.name!r}")
    names = first.tensors.keys()
    return replace(first, tensors={name: torch.stack([c.tensors[name] for c in checkpoints]).mean(0) for name in names})
