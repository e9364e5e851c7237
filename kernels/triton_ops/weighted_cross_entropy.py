"""LM head and token-weighted NLL (`kernels.weighted_cross_entropy`) with both derivatives, on the passes over the head.

`token_nll` makes loss and gradient in one, `nll_curvature` the second derivative in another; `vocabulary_plan` cuts
them into programs. Tokens of weight 0 cost nothing.

Bytes at least: hidden states and W once, NLL and gradient once. Programs with consecutive numbers share a block of W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import is_differentiated
from kernels.model_shapes import ModelShape
from kernels.triton_ops.nll_curvature import nll_curvature
from kernels.triton_ops.numbers import check_dtype
from kernels.triton_ops.token_nll import token_nll
from kernels.triton_ops.vocabulary_plan import Tokens

__all__ = ["aot_cases", "weighted_cross_entropy"]


def weighted_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """`kernels.weighted_cross_entropy` in Triton.

    Raises:
        ValueError: a dtype is none that the kernels have, or that of the head is not that of the hidden states.
    """
    check_dtype("hidden", hidden.dtype)
    if head.dtype != hidden.dtype:
        raise ValueError(f"head: dtype {head.dtype} is not {hidden.dtype}, that of the hidden states")
    flat = hidden.reshape(-1, hidden.shape[-1])
    targets = targets.reshape(-1).contiguous()
    tokens = Tokens(targets, targets, targets, compact=False)
    if not is_differentiated(weights):
        # The slope along a weight is its token's NLL, at weight 0 too; else such a token has no part in anything.
        dead = (weights == 0).flatten()
        tokens = Tokens(targets, dead.to(torch.uint8).argsort(stable=True), (~dead).sum(), compact=True)
    nll: Tensor = _TokenNll.apply(flat, head, tokens)  # type: ignore[no-untyped-call]
    return (nll.view_as(weights) * weights).sum(-1)


class _TokenNll(torch.autograd.Function):
    """Per-token NLL ``[T]`` in the accumulator's dtype; its gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, tokens: Tokens) -> Tensor:
        nll, log_totals, gradient = token_nll(hidden, head, tokens, wants_gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(hidden, head, log_totals, gradient)
        ctx.tokens = tokens
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        hidden, head, log_totals, gradient = ctx.saved_tensors
        slope: Tensor = _TokenNllGradient.apply(hidden, upstream[0], head, ctx.tokens, log_totals, gradient)  # type: ignore[no-untyped-call]
        return slope, None, None


class _TokenNllGradient(torch.autograd.Function):
    """upstream · (softmax − onehot) W, ``[T, H]``, of the gradient from the forward pass; differentiable once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, upstream: Tensor, head: Tensor, tokens: Tokens, log_totals: Tensor, gradient: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden, upstream, head, log_totals, gradient)
        ctx.tokens = tokens
        return (upstream[:, None] * gradient).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        hidden, upstream, head, log_totals, gradient = ctx.saved_tensors
        curvature, along = None, None
        if ctx.needs_input_grad[0]:
            # Scaled at its end: the direction times the upstream gradient would be rounded before the product.
            curvature = nll_curvature(hidden, direction, gradient, head, ctx.tokens, log_totals, upstream.contiguous())
        if ctx.needs_input_grad[1]:
            along = (direction.to(upstream.dtype) * gradient).sum(-1)
        return curvature, along, None, None, None, None


def aot_cases(shape: ModelShape) -> Iterator[tuple[str, Callable[[], object]]]:
    """Loss, gradient and curvature, with and without tokens to leave out; the loss alone."""

    def train(dtype: torch.dtype, *, learned_weights: bool) -> None:
        hidden = torch.empty(1, 4096, shape.hidden, dtype=dtype, device="meta", requires_grad=True)
        head = torch.empty(shape.vocabulary, shape.hidden, dtype=dtype, device="meta")
        targets = torch.empty(1, 4096, dtype=torch.int64, device="meta")
        weights = torch.empty(1, 4096, dtype=dtype, device="meta", requires_grad=learned_weights)
        with torch.no_grad():
            weighted_cross_entropy(hidden, head, targets, weights)
        loss = weighted_cross_entropy(hidden, head, targets, weights)
        (gradient,) = torch.autograd.grad(loss.sum(), hidden, create_graph=True)
        torch.autograd.grad(gradient, hidden, torch.empty_like(gradient))

    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield name, partial(train, dtype, learned_weights=False)
        yield f"{name} learned weights", partial(train, dtype, learned_weights=True)
