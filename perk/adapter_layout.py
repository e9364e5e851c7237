"""How the tensors of an adapter lie in one flat buffer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

__all__ = ["AdapterLayout"]


@dataclass(frozen=True)
class AdapterLayout:
    """Names and shapes of an adapter's tensors in its flat buffer of P elements.

    Attributes:
        modules: path of each adapted linear module inside the model, in order.
        shapes: shape of each tensor: A ``(r, in)`` and B ``(out, r)`` of every module in turn.
    """

    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each tensor."""
        return [rows * columns for rows, columns in self.shapes]

    @property
    def size(self) -> int:
        """P, the length of the flat buffer."""
        return sum(self.sizes)

    @property
    def names(self) -> list[str]:
        """Name of each tensor, such as ``model.layers.20.mlp.up_proj.A``."""
        return [f"{module}.{side}" for module in self.modules for side in "AB"]

    def views(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split buffers ``[D, P]`` into (A ``[D, r, in]``, B ``[D, out, r]``) for every module."""
        parts = theta.split(self.sizes, dim=-1)
        shaped = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return list(zip(shaped[0::2], shaped[1::2], strict=True))

    def initialise(self, generator: torch.Generator | None = None) -> Tensor:
        """A fresh buffer ``[P]``: A normal with variance 1 / in, B zero, so that it changes nothing yet."""
        theta = torch.zeros(self.size)
        starts = [0, *accumulate(self.sizes)]
        for index in range(0, len(self.shapes), 2):
            inputs = self.shapes[index][1]
            theta[starts[index] : starts[index + 1]].normal_(std=inputs**-0.5, generator=generator)
        return theta
