"""[x (W_i + s B_i A_i)ᵀ + b_i]: linear maps that share their input, one document's adapters merged into their weights.

For the passes of a step on a CPU, which all see the same adapters: merged once a step, queries, keys and values are one
matrix product forward and one backward, and the low-rank terms cost nothing there. Only the adapters' own gradients are
products of rank r: dA_i = s (dy_i B_i)ᵀ x, dB_i = s dy_iᵀ (x A_iᵀ), the x A_iᵀ of all maps made by one product, and the
dA_i by another. No gradient of W. The merged weights are as many as the weights: callers see to it that there is room.

Products may be of a narrower type than the frozen weights and the adapters, which a CPU multiplies faster
(`kernels.product_dtype`). Their inputs and outputs, merged weights among them, are then of that type; what they are
added to, be it states or the adapters' gradients, is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.workspace import Workspace

__all__ = ["FrozenProjections", "MergedProjections"]

# A ``[r, in]`` and B ``[out, r]`` of a map, or None where it has no adapter.
Adapter = tuple[Tensor, Tensor] | None


class FrozenProjections:
    """[x W_iᵀ + b_i] for maps without adapters."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take weights ``[out_i, in]`` and biases ``[out_i]``; the weights are not copied."""
        self.weights = tuple(weights)
        self.widths = tuple(weight.shape[0] for weight in weights)
        self.bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            zeros = (weight.new_zeros(weight.shape[0]) for weight in weights)
            self.bias = torch.cat([zero if bias is None else bias for zero, bias in zip(zeros, biases, strict=True)])

    @property
    def width(self) -> int:
        """Σ out_i."""
        return sum(self.widths)

    @property
    def dtype(self) -> torch.dtype:
        """Type of inputs and outputs."""
        return self.weights[0].dtype

    def forward(self, x: Tensor, into: Tensor) -> Tensor:
        """``[T, in]`` to ``[T, Σ out_i]``, which is written to `into`."""
        for weight, part in zip(self.weights, into.split(self.widths, dim=1), strict=True):
            torch.mm(x, weight.T, out=part)
        return into if self.bias is None else into.add_(self.bias)

    def forward_add(self, x: Tensor, addend: Tensor, into: Tensor, scratch: Workspace) -> Tensor:  # noqa: ARG002
        """`forward` plus a tensor ``[T, Σ out_i]``, which stays as it is."""
        return self.forward(x, into).add_(addend)


class MergedProjections:
    """The same under adapters that change between steps."""

    def __init__(self, frozen: FrozenProjections, scale: float, dtype: torch.dtype) -> None:
        """Reserve the merged weights; `merge` fills them.

        Args:
            frozen: the maps without adapters.
            scale: factor s of the low-rank term.
            dtype: type of the products.
        """
        self._frozen = frozen
        self._scale = scale
        self._weight = frozen.weights[0].new_empty(frozen.width, frozen.weights[0].shape[1], dtype=dtype)
        self._bias = None if frozen.bias is None else frozen.bias.to(self._weight.dtype)
        self._adapters: list[Adapter] = []
        self._stacked: Tensor | None = None

    @property
    def width(self) -> int:
        """Σ out_i."""
        return self._frozen.width

    @property
    def dtype(self) -> torch.dtype:
        """Type of inputs and outputs."""
        return self._weight.dtype

    def merge(self, adapters: Sequence[Adapter], scratch: Workspace) -> None:
        """Take these adapters, one a map, from now on; they are added in the type of the frozen weights."""
        parts = self._weight.split(self._frozen.widths)
        for weight, adapter, part in zip(self._frozen.weights, adapters, parts, strict=True):
            if adapter is None:
                part.copy_(weight)
            elif self.dtype == weight.dtype:
                torch.addmm(weight, adapter[1], adapter[0], alpha=self._scale, out=part)
            else:
                whole = scratch.take(*weight.shape, dtype=weight.dtype)
                part.copy_(torch.addmm(weight, adapter[1], adapter[0], alpha=self._scale, out=whole))
        self._adapters = [
            None if pair is None else (pair[0].to(self.dtype), pair[1].to(self.dtype)) for pair in adapters
        ]
        downs = [adapter[0] for adapter in self._adapters if adapter is not None]
        self._stacked = torch.cat(downs) if downs else None

    def forward(self, x: Tensor, into: Tensor) -> Tensor:
        """``[T, in]`` to ``[T, Σ out_i]``, which is written to `into`."""
        if self._bias is None:
            return torch.mm(x, self._weight.T, out=into)
        return torch.addmm(self._bias, x, self._weight.T, out=into)

    def forward_add(self, x: Tensor, addend: Tensor, into: Tensor, scratch: Workspace) -> Tensor:
        """`forward` plus a tensor ``[T, Σ out_i]``, which stays as it is; summed in its type, that of `into`."""
        if self.dtype != into.dtype:
            y = self.forward(x, scratch.take(*into.shape, dtype=self.dtype))
            return torch.add(addend, y, out=into)
        y = torch.addmm(addend, x, self._weight.T, out=into)
        return y if self._bias is None else y.add_(self._bias)

    def backward(self, dy: Tensor, x: Tensor, gradients: Sequence[Adapter], scratch: Workspace) -> None:
        """Add the adapters' gradients to theirs in `gradients`, given those of the outputs ``[T, Σ out_i]``."""
        if self._stacked is None:
            return
        tokens, ranks = x.shape[0], self._stacked.shape[0]
        low = torch.mm(x, self._stacked.T, out=scratch.take(tokens, ranks, dtype=self.dtype))
        low_dy = scratch.take(tokens, ranks, dtype=self.dtype)
        into: list[tuple[Tensor, Tensor]] = []
        start = 0
        for part, adapter, gradient in zip(
            dy.split(self._frozen.widths, dim=1), self._adapters, gradients, strict=True
        ):
            if adapter is None or gradient is None:
                continue
            columns = slice(start, start + adapter[0].shape[0])
            start = columns.stop
            torch.mm(part, adapter[1], out=low_dy[:, columns])
            # The long side of a product comes last: MKL is a third faster then.
            gradient[1].add_((low[:, columns].T @ part).T, alpha=self._scale)
            into.append(gradient)
        downs = (low_dy.T @ x).split([gradient[0].shape[0] for gradient in into])
        for gradient, down in zip(into, downs, strict=True):
            gradient[0].add_(down, alpha=self._scale)

    def backward_input(self, dy: Tensor, into: Tensor) -> Tensor:
        """Gradient of the input, ``[T, in]``, which is written to `into`."""
        return torch.mm(dy, self._weight, out=into)
