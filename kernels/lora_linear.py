"""y = x Wᵀ + b + s (x Aᵀ) Bᵀ: a frozen linear map plus one low-rank map per document.

Bytes at least: x, W, A, B read once and y written once. The torch reference below reads x twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["lora_linear"]


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Apply the frozen weight, shared by all documents, and each document's own adapter.

    Args:
        x: inputs, ``[D, M, in]``: M token vectors for each of D documents.
        weight: frozen weight, ``[out, in]``; never receives a gradient.
        bias: frozen bias, ``[out]``, or None.
        a: down projections, ``[D, r, in]``.
        b: up projections, ``[D, out, r]``.
        scale: factor s of the low-rank term (LoRA, arXiv 2106.09685, section 4.1).

    Returns:
        ``[D, M, out]``; differentiable any number of times in x, a and b.
    """
    low = x @ a.transpose(-1, -2)
    frozen = functional.linear(x, weight, bias)
    return torch.baddbmm(frozen, low, b.transpose(-1, -2), alpha=scale)
