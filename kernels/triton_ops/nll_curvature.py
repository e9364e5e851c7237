"""Wᵀ (p ∘ u − p (p · u)) with u = W v: the second derivative of each token's NLL along v, in one pass over the head.

Σ p W is the first gradient plus W[y], so p · u = (Σ p W) · v is known beforehand, but for what the gradient's dtype
rounds away. Where one token has nearly all of the probability, that is more than the derivative itself. So a pass sums
up p ∘ (u − m) W about this rounded m, and its own Σ p (u − m), the rest of p · u, times Σ p W is taken off at the end.
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

__all__ = ["PRODUCTS", "nll_curvature"]

PRODUCTS = frozenset({"curvature_kernel"})


@triton.jit(do_not_specialize=["tokens", "vocabulary", "token_blocks", "column_blocks", "columns"])
def curvature_kernel(
    hidden,
    direction,
    gradient,
    head,
    targets,
    order,
    live,
    log_totals,
    sums,
    rests,
    tokens,
    vocabulary,
    width,
    token_blocks,
    column_blocks,
    columns,
    h_t,
    h_k,
    v_t,
    v_k,
    w_v,
    w_k,
    COMPACT: tl.constexpr,
    FACTOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """A program: its tokens' Σ p (u − m) W and Σ p (u − m) over `columns` blocks of the vocabulary."""
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
    log_total = tl.load(log_totals + row, mask=in_tokens, other=0.0)
    k = tl.arange(0, BLOCK_K)
    place = share.to(tl.int64) * tokens + t

    # 1. m, nearly p · u, of each token.
    mean = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    for start in range(0, width, BLOCK_K):
        inside = in_tokens[:, None] & (start + k < width)[None, :]
        expected = tl.load(head + target[:, None] * w_v + (start + k)[None, :] * w_k, mask=inside, other=0.0)
        expected = expected.to(ACCUMULATOR)
        expected += tl.load(gradient + row[:, None] * width + (start + k)[None, :], mask=inside, other=0.0)
        v_tile = tl.load(direction + row[:, None] * v_t + (start + k)[None, :] * v_k, mask=inside, other=0.0)
        mean += tl.sum(expected * v_tile.to(ACCUMULATOR), 1)

    rest = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    for column in range(share * columns, tl.minimum((share + 1) * columns, column_blocks)):
        n = column * BLOCK_V + tl.arange(0, BLOCK_V)
        in_vocabulary = n < vocabulary
        w_rows = head + n.to(tl.int64) * w_v

        # 2. Logits and tangents of this block.
        logits = tl.zeros((BLOCK_T, BLOCK_V), dtype=ACCUMULATOR)
        tangents = tl.zeros((BLOCK_T, BLOCK_V), dtype=ACCUMULATOR)
        for start in range(0, width, BLOCK_K):
            in_width = start + k < width
            inside = in_tokens[:, None] & in_width[None, :]
            x_tile = tl.load(hidden + row[:, None] * h_t + (start + k)[None, :] * h_k, mask=inside, other=0.0)
            v_tile = tl.load(direction + row[:, None] * v_t + (start + k)[None, :] * v_k, mask=inside, other=0.0)
            w_tile = tl.load(
                w_rows[None, :] + (start + k)[:, None] * w_k, mask=in_width[:, None] & in_vocabulary[None, :], other=0.0
            )
            w_tile = w_tile.to(FACTOR)
            logits = tl.dot(x_tile.to(FACTOR), w_tile, logits, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            tangents = tl.dot(v_tile.to(FACTOR), w_tile, tangents, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        probabilities = tl.where(in_vocabulary[None, :], tl.exp(logits - log_total[:, None]), 0.0)
        change = (probabilities * (tangents - mean[:, None])).to(dtype)
        rest += tl.sum(change.to(ACCUMULATOR), 1)
        change = change.to(FACTOR)

        # 3. Its part of the sums; nothing to read before the first block.
        begun = t < tl.where(column > share * columns, count, 0)
        for start in range(0, width, BLOCK_H):
            h = start + tl.arange(0, BLOCK_H)
            in_width = h < width
            w_tile = tl.load(
                w_rows[:, None] + h[None, :] * w_k, mask=in_vocabulary[:, None] & in_width[None, :], other=0.0
            )
            inside = in_tokens[:, None] & in_width[None, :]
            sum_tile = sums + place[:, None] * width + h[None, :]
            old = tl.load(sum_tile, mask=begun[:, None] & in_width[None, :], other=0.0)
            new = tl.dot(change, w_tile.to(FACTOR), old, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            tl.store(sum_tile, new, mask=inside)
        # The next block may read with another thread what this one has written.
        tl.debug_barrier()
    tl.store(rests + place, rest, mask=in_tokens)


@triton.jit(do_not_specialize=["tokens", "shares"])
def add_curvature_shares_kernel(
    gradient,
    head,
    targets,
    order,
    live,
    scales,
    sums,
    rests,
    product,
    tokens,
    shares,
    width,
    w_v,
    w_k,
    COMPACT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """product ``[T, H]`` from the shares of the vocabulary, added, about p · u and scaled; zeros for dead tokens."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    in_tokens = t < tokens
    row = find_rows(order, t, in_tokens, COMPACT)
    alive = t < count_live(live, tokens, COMPACT)
    target = tl.load(targets + row, mask=alive, other=0)
    scale = tl.load(scales + row, mask=alive, other=0.0)
    rest = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    for share in range(0, shares):
        rest += tl.load(rests + share * tokens + t, mask=alive, other=0.0)
    for start in range(0, width, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        in_width = (h < width)[None, :]
        inside = alive[:, None] & in_width
        expected = tl.load(head + target[:, None] * w_v + h[None, :] * w_k, mask=inside, other=0.0).to(ACCUMULATOR)
        expected += tl.load(gradient + row[:, None] * width + h[None, :], mask=inside, other=0.0)
        value = -rest[:, None] * expected
        place = t.to(tl.int64)
        for _ in range(0, shares):
            value += tl.load(sums + place[:, None] * width + h[None, :], mask=inside, other=0.0)
            place += tokens
        tl.store(
            product + row[:, None] * width + h[None, :],
            (scale[:, None] * value).to(product.dtype.element_ty),
            mask=in_tokens[:, None] & in_width,
        )


def nll_curvature(
    hidden: Tensor,
    direction: Tensor,
    gradient: Tensor,
    head: Tensor,
    tokens: Tokens,
    log_totals: Tensor,
    scales: Tensor,
) -> Tensor:
    """Hessian of each token's NLL along its direction, times its scale, ``[T, H]``."""
    count, width = hidden.shape
    plan = make_plan(hidden, head, tangents=True)
    sums = hidden.new_empty(plan.shares, count, width, dtype=sum_dtype(hidden.dtype))
    rests = sums.new_empty(plan.shares, count)
    product = hidden.new_empty(count, width)
    launch(
        curvature_kernel,
        (plan.token_blocks * plan.shares,),
        hidden,
        direction,
        gradient,
        head,
        tokens.targets,
        tokens.order,
        tokens.live,
        log_totals,
        sums,
        rests,
        count,
        head.shape[0],
        width,
        plan.token_blocks,
        plan.column_blocks,
        plan.columns,
        *hidden.stride(),
        *direction.stride(),
        *head.stride(),
        COMPACT=tokens.compact,
        **options(hidden, plan),
    )
    launch(
        add_curvature_shares_kernel,
        (triton.cdiv(count, ROW_BLOCK),),
        gradient,
        head,
        tokens.targets,
        tokens.order,
        tokens.live,
        scales,
        sums,
        rests,
        product,
        count,
        plan.shares,
        width,
        *head.stride(),
        COMPACT=tokens.compact,
        ACCUMULATOR=accumulator(hidden.dtype),
        BLOCK_T=ROW_BLOCK,
        BLOCK_H=WIDTH_BLOCK,
        num_warps=4,
    )
    return product
