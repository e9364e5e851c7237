"""NLL of each token under the LM head, and its gradient, in one pass over the head.

A program makes the logits of its tokens on chip, block by block, keeps the running maximum m and the running sum
Σ exp(l − m) of each, and adds exp(l − m) W to a sum of the token's own, scaled down whenever m grows. So the gradient
(softmax − onehot) W needs no second product with the hidden states, and logits never leave the chip. The sums,
``[shares, T, H]`` in float32, belong to one program each (no atomics: the same bits in every run) and live in the L2
cache, as long as programs · BLOCK_T · H · 4 bytes fit in it: 29 MB at H = 896. A small kernel adds up the shares in
order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import launch
from kernels.triton_ops.numbers import accumulator, sum_dtype
from kernels.triton_ops.vocabulary_plan import (
    ROW_BLOCK,
    WIDTH_BLOCK,
    Tokens,
    count_live,
    find_rows,
    make_plan,
    options,
)

__all__ = ["PRODUCTS", "token_nll"]

PRODUCTS = frozenset({"nll_kernel"})


@triton.jit(do_not_specialize=["tokens", "vocabulary", "token_blocks", "column_blocks", "columns"])
def nll_kernel(
    hidden,
    head,
    targets,
    order,
    live,
    peaks,
    totals,
    picked,
    sums,
    tokens,
    vocabulary,
    width,
    token_blocks,
    column_blocks,
    columns,
    h_t,
    h_k,
    w_v,
    w_k,
    COMPACT: tl.constexpr,
    GRADIENT: tl.constexpr,
    FACTOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A program: BLOCK_T tokens and `columns` blocks of BLOCK_V rows of the head, one after the other."""
    dtype = hidden.dtype.element_ty
    token_block = tl.program_id(0) % token_blocks
    share = tl.program_id(0) // token_blocks
    count = count_live(live, tokens, COMPACT)
    if token_block * BLOCK_T >= count:
        return
    t = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    in_tokens = t < count
    row = find_rows(order, t, in_tokens, COMPACT)
    target = tl.load(targets + row, mask=in_tokens, other=0)
    k = tl.arange(0, BLOCK_K)
    x_tiles = hidden + row[:, None] * h_t + k[None, :] * h_k
    place = share.to(tl.int64) * tokens + t

    peak = tl.full((BLOCK_T,), float("-inf"), dtype=ACCUMULATOR)
    total = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    target_logit = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    for column in range(share * columns, tl.minimum((share + 1) * columns, column_blocks)):
        n = column * BLOCK_V + tl.arange(0, BLOCK_V)
        in_vocabulary = n < vocabulary
        w_rows = head + n.to(tl.int64) * w_v

        # 1. Logits of this block, and the running maximum and sum.
        logits = tl.zeros((BLOCK_T, BLOCK_V), dtype=ACCUMULATOR)
        for start in range(0, width, BLOCK_K):
            in_width = start + k < width
            x_tile = tl.load(x_tiles + start * h_k, mask=in_tokens[:, None] & in_width[None, :], other=0.0)
            w_tile = tl.load(
                w_rows[None, :] + (start + k)[:, None] * w_k, mask=in_width[:, None] & in_vocabulary[None, :], other=0.0
            )
            logits = tl.dot(
                x_tile.to(FACTOR), w_tile.to(FACTOR), logits, input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
        logits = tl.where(in_vocabulary[None, :], logits, float("-inf"))
        target_logit += tl.sum(tl.where(n[None, :] == target[:, None], logits, 0.0), 1)
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        decay = tl.exp(peak - new_peak)
        logits = tl.exp(logits - new_peak[:, None])
        total = total * decay + tl.sum(logits, 1)
        peak = new_peak

        # 2. Its part of Σ exp(l − m) W.
        if GRADIENT:
            share_of_each = logits.to(dtype).to(FACTOR)
            # Nothing to read before the first block.
            begun = t < tl.where(column > share * columns, count, 0)
            for start in range(0, width, BLOCK_H):
                h = start + tl.arange(0, BLOCK_H)
                in_width = h < width
                w_tile = tl.load(
                    w_rows[:, None] + h[None, :] * w_k, mask=in_vocabulary[:, None] & in_width[None, :], other=0.0
                )
                inside = in_tokens[:, None] & in_width[None, :]
                sum_tile = sums + place[:, None] * width + h[None, :]
                old = tl.load(sum_tile, mask=begun[:, None] & in_width[None, :], other=0.0) * decay[:, None]
                new = tl.dot(share_of_each, w_tile.to(FACTOR), old, input_precision=PRECISION, out_dtype=ACCUMULATOR)
                tl.store(sum_tile, new, mask=inside)
            # The next block may read with another thread what this one has written.
            tl.debug_barrier()
    tl.store(peaks + place, peak, mask=in_tokens)
    tl.store(totals + place, total, mask=in_tokens)
    tl.store(picked + place, target_logit, mask=in_tokens)


@triton.jit(do_not_specialize=["tokens", "shares"])
def add_nll_shares_kernel(
    head,
    targets,
    order,
    live,
    peaks,
    totals,
    picked,
    sums,
    nll,
    log_totals,
    gradient,
    tokens,
    shares,
    width,
    w_v,
    w_k,
    COMPACT: tl.constexpr,
    GRADIENT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """NLL, log-sum-exp and gradient of BLOCK_T tokens from the shares of the vocabulary; zeros for dead tokens."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    in_tokens = t < tokens
    row = find_rows(order, t, in_tokens, COMPACT)
    alive = t < count_live(live, tokens, COMPACT)
    peak = tl.full((BLOCK_T,), float("-inf"), dtype=ACCUMULATOR)
    for share in range(0, shares):
        peak = tl.maximum(peak, tl.load(peaks + share * tokens + t, mask=alive, other=0.0))
    total = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    target_logit = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    for share in range(0, shares):
        decay = tl.exp(tl.load(peaks + share * tokens + t, mask=alive, other=0.0) - peak)
        total += tl.load(totals + share * tokens + t, mask=alive, other=1.0) * decay
        target_logit += tl.load(picked + share * tokens + t, mask=alive, other=0.0)
    log_total = peak + tl.log(total)
    tl.store(nll + row, tl.where(alive, log_total - target_logit, 0.0), mask=in_tokens)
    tl.store(log_totals + row, tl.where(alive, log_total, 0.0), mask=in_tokens)
    if GRADIENT:
        target = tl.load(targets + row, mask=alive, other=0)
        for start in range(0, width, BLOCK_H):
            h = start + tl.arange(0, BLOCK_H)
            in_width = (h < width)[None, :]
            inside = alive[:, None] & in_width
            value = -tl.load(head + target[:, None] * w_v + h[None, :] * w_k, mask=inside, other=0.0).to(ACCUMULATOR)
            place = t.to(tl.int64)
            for _ in range(0, shares):
                scale = tl.exp(tl.load(peaks + place, mask=alive, other=0.0) - log_total)
                part = tl.load(sums + place[:, None] * width + h[None, :], mask=inside, other=0.0)
                value += scale[:, None] * part
                place += tokens
            tl.store(
                gradient + row[:, None] * width + h[None, :],
                value.to(gradient.dtype.element_ty),
                mask=in_tokens[:, None] & in_width,
            )


def token_nll(hidden: Tensor, head: Tensor, tokens: Tokens, *, wants_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """NLL ``[T]``, log-sum-exp ``[T]`` and, if wanted, gradient ``[T, H]``."""
    count, width = hidden.shape
    plan = make_plan(hidden, head, tangents=False)
    sums_like = hidden.new_empty(0, dtype=sum_dtype(hidden.dtype))
    peaks, totals, picked = (sums_like.new_empty(plan.shares, count) for _ in range(3))
    sums = sums_like.new_empty(plan.shares, count if wants_gradient else 0, width)
    nll, log_totals = sums_like.new_empty(count), sums_like.new_empty(count)
    gradient = hidden.new_empty(count if wants_gradient else 0, width)
    launch(
        nll_kernel,
        (plan.token_blocks * plan.shares,),
        hidden,
        head,
        tokens.targets,
        tokens.order,
        tokens.live,
        peaks,
        totals,
        picked,
        sums,
        count,
        head.shape[0],
        width,
        plan.token_blocks,
        plan.column_blocks,
        plan.columns,
        *hidden.stride(),
        *head.stride(),
        COMPACT=tokens.compact,
        GRADIENT=wants_gradient,
        **options(hidden, plan),
    )
    launch(
        add_nll_shares_kernel,
        (triton.cdiv(count, ROW_BLOCK),),
        head,
        tokens.targets,
        tokens.order,
        tokens.live,
        peaks,
        totals,
        picked,
        sums,
        nll,
        log_totals,
        gradient,
        count,
        plan.shares,
        width,
        *head.stride(),
        COMPACT=tokens.compact,
        GRADIENT=wants_gradient,
        ACCUMULATOR=accumulator(hidden.dtype),
        BLOCK_T=ROW_BLOCK,
        BLOCK_H=WIDTH_BLOCK,
        num_warps=4,
    )
    return nll, log_totals, gradient
