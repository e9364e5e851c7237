"""sum_t w_t · (logsumexp(h_t Wᵀ) − h_t · W[y_t]): LM head and token-weighted NLL without stored logits.

The head is the largest matrix of a small model: its logits ``[T, V]`` would be by far the largest tensor of the
inner loop. They are made and consumed in chunks of tokens that stay in cache. Because the gradient of the loss is
known in closed form, (softmax − onehot) W, it is computed in the same pass over the logits; the second derivative
goes through another pass, by the Hessian-vector product Wᵀ (p ∘ u − p (p · u)) with u = W v.

Products with W, per token: 2 for loss and gradient, 3 more for the second derivative. The Triton kernels
(`kernels.triton_ops.weighted_cross_entropy`) take as many, and keep the logits on chip.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.dispatch import use_triton

__all__ = ["weighted_cross_entropy"]

# Tokens a chunk: 64 rows of a 50k vocabulary are 12 MB in float32, which stays in a last-level cache.
_CHUNK = 64


def weighted_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Token-weighted negative log-likelihood under the LM head, summed for each document.

    Args:
        hidden: last hidden states of the tokens that carry loss, ``[D, T, H]``.
        head: frozen LM head, ``[V, H]``; never receives a gradient.
        targets: token ids to predict, ``[D, T]``.
        weights: weight of each token's term, ``[D, T]``; a token of weight 0 adds nothing (padding).

    Returns:
        ``[D]`` sums over T, in the dtype of `hidden`; twice differentiable in `hidden` and `weights`.
    """
    if use_triton(hidden):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import weighted_cross_entropy as triton_weighted_cross_entropy

        return triton_weighted_cross_entropy.weighted_cross_entropy(hidden, head, targets, weights)
    flat = hidden.reshape(-1, hidden.shape[-1])
    nll: Tensor = _TokenNll.apply(flat, head, targets.reshape(-1))  # type: ignore[no-untyped-call]
    return (nll.view_as(weights) * weights).sum(-1)


class _TokenNll(torch.autograd.Function):
    """Per-token NLL ``[T]``; its gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        nll = hidden.new_empty(hidden.shape[0])
        gradient = torch.empty_like(hidden) if wants_gradient else hidden.new_empty(0)
        for start in range(0, hidden.shape[0], _CHUNK):
            rows = slice(start, start + _CHUNK)
            logits = hidden[rows] @ head.T
            picked = targets[rows, None]
            target_logit = logits.gather(1, picked).squeeze(1)
            peak = logits.amax(1, keepdim=True)
            logits.sub_(peak).exp_()
            total = logits.sum(1, keepdim=True)
            nll[rows] = (total.log() + peak).squeeze(1) - target_logit
            if wants_gradient:
                probabilities = logits.div_(total)
                probabilities.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=logits.dtype))
                torch.mm(probabilities, head, out=gradient[rows])
        ctx.save_for_backward(hidden, head, targets, gradient)
        return nll

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        hidden, head, targets, gradient = ctx.saved_tensors  # type: ignore[attr-defined]
        slope: Tensor = _TokenNllGradient.apply(hidden, head, targets, gradient)  # type: ignore[no-untyped-call]
        return upstream[0][:, None] * slope, None, None


class _TokenNllGradient(torch.autograd.Function):
    """(softmax − onehot) W, ``[T, H]``, already computed in the forward pass; differentiable once more."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, head)
        return gradient.view_as(gradient)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, None, None, None]:
        hidden, head = ctx.saved_tensors
        product = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], _CHUNK):
            rows = slice(start, start + _CHUNK)
            count = hidden[rows].shape[0]
            both = torch.cat([hidden[rows], direction[rows]]) @ head.T
            probabilities = both[:count].softmax(1)
            tangent = both[count:]
            inner = torch.linalg.vecdot(probabilities, tangent)
            tangent.sub_(inner[:, None]).mul_(probabilities)
            torch.mm(tangent, head, out=product[rows])
        return product, None, None, None
