"""The mean of what a run has learned over its last steps, which a step of few documents does not throw off.

(Polyak and Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["RunningMean"]


class RunningMean:
    """Exponential mean of named tensors, and at first, while there have been few steps, the plain one."""

    def __init__(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Begin with these values; the mean will reach back about `steps` steps."""
        self._steps = steps
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def add(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take in the values after a step, the run's first being number 1."""
        share = max(1 / self._steps, 1 / (step + 1))
        for name, mean in self.tensors.items():
            mean.lerp_(tensors[name], share)
