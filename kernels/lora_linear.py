"""y = x Wᵀ + b + s (x Aᵀ) Bᵀ: a frozen linear map plus one low-rank map per document.

Bytes at least: x, W, A, B read once and y written once. The torch reference below reads x twice; the Triton kernel
(`kernels.triton_ops.lora_linear`) keeps the low-rank product on chip.

Gradients: dx = dy W + s (dy B) A, dA = s (dy B)ᵀ x, dB = s dyᵀ (x Aᵀ), and none of W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.dispatch import is_forced, use_triton

__all__ = ["lora_linear", "quantise_rows"]

# Beyond, a kernel that makes x Aᵀ for each group of its outputs is slower than three products of cuBLAS which move more
# bytes: half as fast at rank 256 (benchmarks/gpu.csv).
_MOST_RANKS = 64


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    row_scales: Tensor | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Apply the frozen weight, shared by all documents, and each document's own adapter.

    Args:
        x: inputs, ``[D, M, in]``: M token vectors for each of D documents.
        weight: frozen weight, ``[out, in]``; never receives a gradient.
        bias: frozen bias, ``[out]``, or None.
        a: down projections, ``[D, r, in]``.
        b: up projections, ``[D, out, r]``.
        scale: factor s of the low-rank term (LoRA, arXiv 2106.09685, section 4.1).
        row_scales: where `weight` holds 8-bit integers, the factor of each of its rows, ``[out]`` (`quantise_rows`).
        gradients: buffers ``[D, r, in]`` and ``[D, out, r]``, usually views of a flat one: the backward pass adds the
            gradients of a and b to them, in place, and hands on only that of x. Such a pass is differentiable once.

    Returns:
        ``[D, M, out]``; without `gradients`, differentiable any number of times in x, a and b (in Triton: twice).

    Raises:
        ValueError: a shape does not fit the others, or 8-bit weights come without their scales.
    """
    _check_shapes(x, weight, a, b, row_scales)
    if use_triton(x) and (a.shape[1] <= _MOST_RANKS or row_scales is not None or is_forced()):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import lora_linear as triton_lora_linear

        return triton_lora_linear.lora_linear(x, weight, row_scales, bias, a, b, scale, gradients)
    if row_scales is not None:
        weight = weight.to(x.dtype) * row_scales[:, None].to(x.dtype)
    if gradients is not None:
        y: Tensor = _Accumulating.apply(x, a, b, weight, bias, scale, gradients)  # type: ignore[no-untyped-call]
        return y
    return _reference(x, weight, bias, a, b, scale)[0]


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit integers ``[out, in]`` and the scale of each row ``[out]`` (float32), whose product is near `weight`."""
    scales = weight.abs().amax(1).float().clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """y and the low-rank product x Aᵀ."""
    low = x @ a.mT
    return torch.baddbmm(functional.linear(x, weight, bias), low, b.mT, alpha=scale), low


class _Accumulating(torch.autograd.Function):
    """The reference, with the gradients of a and b added to buffers."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        gradients: tuple[Tensor, Tensor],
    ) -> Tensor:
        y, low = _reference(x, weight, bias, a, b, scale)
        ctx.save_for_backward(x, a, b, weight, low)
        ctx.scale, ctx.gradients = scale, gradients
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("gradients: a pass that adds to buffers cannot be differentiated again")
        x, a, b, weight, low = ctx.saved_tensors
        dy = upstream[0]
        low_dy = dy @ b
        for buffer, left, right in zip(ctx.gradients, (low_dy, dy), (x, low), strict=True):
            if buffer.dtype == left.dtype:
                buffer.baddbmm_(left.mT, right, alpha=ctx.scale)
            else:
                buffer.add_(left.mT @ right, alpha=ctx.scale)
        dx = torch.baddbmm(dy @ weight, low_dy, a, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, None, None


def _check_shapes(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, row_scales: Tensor | None) -> None:
    outputs, inputs = weight.shape
    documents, rank = a.shape[:2]
    expected = {
        "x": (x, (documents, x.shape[1], inputs)),
        "a": (a, (documents, rank, inputs)),
        "b": (b, (documents, outputs, rank)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: shape {list(tensor.shape)} is not {list(shape)}, which the others ask for")
    if (weight.dtype == torch.int8) != (row_scales is not None):
        raise ValueError(f"row_scales: needed with 8-bit weights, and only with them; the weight is {weight.dtype}")
