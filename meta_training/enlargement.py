"""A larger checkpoint from a smaller one: more rank or more inner steps, learned once and not again from nothing.

What was learned stays as it is. What is new begins where it changes nothing, or little: rows of A at the scale of those
that are there against columns of zeros in B, and further inner steps that grow ever smaller. Meta-training goes on from
there (`train --start`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from pydantic import ValidationError
from torch import Tensor

from meta_training.settings import wrong_setting
from perk.adapter_layout import AdapterLayout
from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput
from perk.readers import READERS
from perk.settings import PerkSettings

__all__ = ["enlarge"]

# Step sizes of A and B are multiplied by this for each doubling of the rank: under a rule that fixes the size of each
# element's change, twice the rank changes the product of B and A by more. Of {0.6, 0.8, 1} for B and {0.8, 0.9, 1} for
# A, it was the best on a register of 26 records and the shipped checkpoint's rank of 32 (docs/notebook.md).
_SHARE_PER_DOUBLING = 0.8
# Size of a further inner step to that of the one before.
_SHARE_PER_STEP = 0.7


def enlarge(
    checkpoint: Checkpoint, layout: AdapterLayout, *, rank: int | None = None, steps: int | None = None, seed: int = 0
) -> Checkpoint:
    """Widen the adapter, prolong the inner loop, or both.

    Args:
        checkpoint: to begin with.
        layout: of its adapter.
        rank: of the new adapter; None: as it is. The scale in front of B A stays what it was.
        steps: N of the new inner loop; None: as it is.
        seed: of the new rows of A.

    Returns:
        A checkpoint whose initialisation computes what the old one does.

    Raises:
        InvalidInput: the rank or the steps would be fewer than they are, or more than settings allow.
    """
    lora, inner = checkpoint.settings.lora, checkpoint.settings.inner
    rank = lora.rank if rank is None else rank
    steps = inner.steps if steps is None else steps
    for name, value, least in [("rank", rank, lora.rank), ("steps", steps, inner.steps)]:
        if value < least:
            raise InvalidInput(name, str(value), f"at least the checkpoint's {least}")
    growth = rank / lora.rank
    values = checkpoint.settings.model_dump()
    values["lora"] |= {"rank": rank, "alpha": lora.alpha * (math.sqrt(growth) if lora.rank_stabilised else growth)}
    values["inner"] |= {"steps": steps}
    try:
        settings = PerkSettings.model_validate(values)
    except ValidationError as error:
        raise wrong_setting(error, otherwise="checkpoint") from error
    initial = _widen(checkpoint.tensors["initial"], layout, rank, torch.Generator().manual_seed(seed))
    sizes = checkpoint.tensors["log_step_sizes"] + math.log2(growth) * math.log(_SHARE_PER_DOUBLING)
    further = torch.arange(1, steps - inner.steps + 1)[:, None] * math.log(_SHARE_PER_STEP)
    tensors = {"initial": initial, "log_step_sizes": torch.cat([sizes, sizes[-1:] + further])}
    for name in READERS:
        if name in checkpoint.tensors:
            tensors[name] = _widen(checkpoint.tensors[name], layout, rank, None)
    return replace(checkpoint, settings=settings, tensors=checkpoint.tensors | tensors)


def _widen(adapter: Tensor, layout: AdapterLayout, rank: int, generator: torch.Generator | None) -> Tensor:
    """``[P]`` of one rank to that of another, the new rows of A drawn at the scale of the old ones, or zero."""
    parts = []
    for a, b in layout.views(adapter[None]):
        more = rank - a.shape[1]
        rows = a.new_zeros(more, a.shape[2])
        if generator is not None:
            rows = a.square().mean().sqrt() * torch.randn(more, a.shape[2], generator=generator)
        parts += [a[0], rows, torch.cat([b[0], b.new_zeros(b.shape[1], more)], dim=1)]
    return torch.cat([part.flatten() for part in parts])
