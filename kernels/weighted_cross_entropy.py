"""sum_t w_t · (logsumexp(h_t Wᵀ) − h_t · W[y_t]): LM head and token-weighted NLL without stored logits.

The head is the largest matrix of a small model: its logits ``[T, V]`` would be by far the largest tensor of the
inner loop. They are made and consumed in blocks of tokens and vocabulary that stay in cache, under a running maximum
and a running sum. Because the gradient of the loss is known in closed form, (softmax − onehot) W, it is computed in the
same pass over the logits; the second derivative goes through another pass, by the Hessian-vector product
Wᵀ (p ∘ u − p (p · u)) with u = W v.

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

# Bytes of a block of logits: on a CPU it stays in a last-level cache, on a GPU few launches are worth more.
_BLOCK_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20}
# Tokens of a block: so many that laying out its part of the head for the product costs little beside it.
_BLOCK_TOKENS = {"cpu": 512, "cuda": 8192}


def weighted_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Token-weighted negative log-likelihood under the LM head, summed for each document.

    Args:
        hidden: last hidden states of the tokens that carry loss, ``[D, T, H]``.
        head: frozen LM head, ``[V, H]``; never receives a gradient.
        targets: token ids to predict, ``[D, T]``.
        weights: weight of each token's term, ``[D, T]``; a token of weight 0 adds nothing (padding).

    Returns:
        ``[D]`` sums over T, in float32 at least; twice differentiable in `hidden` and `weights`.
    """
    if use_triton(hidden):
        # Triton is imported where it runs, and nowhere else.
        from kernels.triton_ops import weighted_cross_entropy as triton_weighted_cross_entropy

        return triton_weighted_cross_entropy.weighted_cross_entropy(hidden, head, targets, weights)
    flat = hidden.reshape(-1, hidden.shape[-1])
    nll: Tensor = _TokenNll.apply(flat, head, targets.reshape(-1))  # type: ignore[no-untyped-call]
    return (nll.view_as(weights) * weights).sum(-1, dtype=torch.promote_types(nll.dtype, torch.float32))


class _TokenNll(torch.autograd.Function):
    """Per-token NLL ``[T]``; its gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        tokens, vocabulary = hidden.shape[0], head.shape[0]
        block_bytes, block_tokens = _BLOCK_BYTES[hidden.device.type], _BLOCK_TOKENS[hidden.device.type]
        nll = hidden.new_empty(tokens)
        gradient = torch.empty_like(hidden) if wants_gradient else hidden.new_empty(0)
        for start in range(0, tokens, block_tokens):
            rows = slice(start, min(start + block_tokens, tokens))
            x = hidden[rows]
            peak = x.new_full((x.shape[0], 1), -torch.inf)
            total, target_logit = torch.zeros_like(peak), torch.zeros_like(peak)
            slope = torch.zeros_like(x) if wants_gradient else gradient
            columns = max(1, block_bytes // (x.itemsize * x.shape[0]))
            for first in range(0, vocabulary, columns):
                block = head[first : first + columns]
                logits = x @ block.T
                new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
                place = targets[rows, None] - first
                inside = (place >= 0) & (place < block.shape[0])
                picked = logits.gather(1, place.clamp(0, block.shape[0] - 1))
                target_logit += torch.where(inside, picked, 0)
                logits.sub_(new_peak).exp_()
                decay = (peak - new_peak).exp_()
                total.mul_(decay).add_(logits.sum(1, keepdim=True))
                if wants_gradient:
                    slope.mul_(decay).addmm_(logits, block)
                peak = new_peak
            nll[rows] = (total.log() + peak - target_logit).squeeze(1)
            if wants_gradient:
                torch.sub(slope.div_(total), head[targets[rows]], out=gradient[rows])
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
        device = hidden.device.type
        count = max(1, min(_BLOCK_TOKENS[device], _BLOCK_BYTES[device] // (hidden.itemsize * head.shape[0])))
        for start in range(0, hidden.shape[0], count):
            rows = slice(start, start + count)
            logits, tangent = hidden[rows] @ head.T, direction[rows] @ head.T
            probabilities = logits.softmax(1)
            inner = torch.linalg.vecdot(probabilities, tangent)
            tangent.sub_(inner[:, None]).mul_(probabilities)
            torch.mm(tangent, head, out=product[rows])
        return product, None, None, None
