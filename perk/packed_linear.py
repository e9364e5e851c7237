"""A frozen linear map for decoding on a CPU: a few rows at a time, with results that no other row has a part in.

The plain product of a few rows with a matrix has two flaws there. It takes the matrix apart anew in each call, which
costs more than the product itself, and it sums in another order for one row than for four, so that a near tie between
two tokens may fall either way by the company a question happens to have. oneDNN's inner product over a weight laid out
once has neither: it is as fast as the memory, and a row's result is the same to the bit in a batch of any size (tests
hold that). The laid-out weight is a second copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["PackedLinear", "can_pack"]

# Rows that the layout is made for; any other number works too.
_ROWS = 8


# torch publishes these operators to its compiler only: a release may drop them, or give them other arguments.
_OPERATORS = {
    "_reorder_linear_weight": ["self", "batch_size"],
    "_linear_pointwise": ["X", "W", "B", "attr", "scalars", "algorithm"],
}


def can_pack(weight: Tensor) -> bool:
    """Whether a weight can be laid out: float32 on a CPU that oneDNN knows, in a torch whose operators are as here."""
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return fits and all(_arguments(name) == expected for name, expected in _OPERATORS.items())


def _arguments(operator: str) -> list[str] | None:
    """Names of an operator's arguments; None where there is no such operator."""
    found = getattr(torch.ops.mkldnn, operator, None)
    return None if found is None else [argument.name for argument in found.default._schema.arguments]


class PackedLinear:
    """y = x Wᵀ + b for `x` ``[..., in]``, under `torch.inference_mode` only."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Lay out a frozen weight ``[out, in]``."""
        # oneDNN's tensors are opaque to the type checker.
        operators: Any = torch.ops.mkldnn
        self._bias = bias
        self._weight = operators._reorder_linear_weight(weight.detach().contiguous(), _ROWS)
        self._apply = operators._linear_pointwise
        # With AVX-512 oneDNN splits the sums of a row that comes alone, where they are long.
        pair = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0))
        self._lone_is_same = torch.equal(self._product(pair[:1]), self._product(pair)[:1])

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if self._lone_is_same or x.shape[:-1].numel() != 1:
            return self._product(x)
        pair = x.reshape(1, -1).expand(2, -1).contiguous()
        return self._product(pair)[:1].view(*x.shape[:-1], -1)

    def _product(self, x: Tensor) -> Tensor:
        y: Tensor = self._apply(x, self._weight, self._bias, "none", [], "")
        return y
