"""LM head and token-weighted NLL (`kernels.weighted_cross_entropy`) in one pass over the head, and its curvature.

A program takes BLOCK_T tokens and a share of the vocabulary, block by block: it makes their logits on chip, keeps the
running maximum m and the running sum Σ exp(l − m) of each token, and adds exp(l − m) W to a sum of the token's own,
scaled down whenever m grows. So the gradient (softmax − onehot) W needs no second product with the hidden states, and
logits never leave the chip. The sums, ``[shares, T, H]`` in float32, belong to one program each (no atomics: the same
bits in every run) and live in the L2 cache, as long as programs · BLOCK_T · H · 4 bytes fit in it: 29 MB at H = 896.
A last, small kernel adds up the shares in order.

The second derivative Wᵀ (p ∘ u − p (p · u)) along v, with u = W v, takes one pass too: p · u = (Σ p W) · v is known
beforehand, because Σ p W is the first gradient plus W[y].

Tokens of weight 0 cost nothing: the others are numbered first, and programs beyond them end at once. How many there are
stays on the device, so that nothing waits for it.

Bytes at least: hidden states and W once, NLL and gradient once. Programs with consecutive numbers share a block of W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import capability, is_differentiated, launch
from kernels.model_shapes import ModelShape
from kernels.triton_ops.numbers import accumulator, check_dtype, factor, precision, sum_dtype

__all__ = ["PRODUCTS", "aot_cases", "weighted_cross_entropy"]

PRODUCTS = frozenset({"nll_kernel", "curvature_kernel"})

# Programs that fill the multiprocessors of the GPUs in question (an A100 has 108, an H100 132) about once.
_PROGRAMS = 128
_ROW_BLOCK = 16
_WIDTH_BLOCK = 128


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
    count = tokens
    if COMPACT:
        count = tl.load(live).to(tl.int32)
    if token_block * BLOCK_T >= count:
        return
    t = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    in_tokens = t < count
    row = t.to(tl.int64)
    if COMPACT:
        row = tl.load(order + t, mask=in_tokens, other=0)
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
    row = t.to(tl.int64)
    alive = in_tokens
    if COMPACT:
        row = tl.load(order + t, mask=in_tokens, other=0)
        alive = t < tl.load(live).to(tl.int32)
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
    """A program: its tokens' Σ p (u − p · u) W over `columns` blocks of the vocabulary."""
    dtype = hidden.dtype.element_ty
    token_block = tl.program_id(0) % token_blocks
    share = tl.program_id(0) // token_blocks
    count = tokens
    if COMPACT:
        count = tl.load(live).to(tl.int32)
    if token_block * BLOCK_T >= count:
        return
    t = token_block * BLOCK_T + tl.arange(0, BLOCK_T)
    in_tokens = t < count
    row = t.to(tl.int64)
    if COMPACT:
        row = tl.load(order + t, mask=in_tokens, other=0)
    target = tl.load(targets + row, mask=in_tokens, other=0)
    log_total = tl.load(log_totals + row, mask=in_tokens, other=0.0)
    k = tl.arange(0, BLOCK_K)
    place = share.to(tl.int64) * tokens + t

    # 1. p · u of each token.
    mean = tl.zeros((BLOCK_T,), dtype=ACCUMULATOR)
    for start in range(0, width, BLOCK_K):
        inside = in_tokens[:, None] & (start + k < width)[None, :]
        expected = tl.load(head + target[:, None] * w_v + (start + k)[None, :] * w_k, mask=inside, other=0.0)
        expected = expected.to(ACCUMULATOR)
        expected += tl.load(gradient + row[:, None] * width + (start + k)[None, :], mask=inside, other=0.0)
        v_tile = tl.load(direction + row[:, None] * v_t + (start + k)[None, :] * v_k, mask=inside, other=0.0)
        mean += tl.sum(expected * v_tile.to(ACCUMULATOR), 1)

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
        change = (probabilities * (tangents - mean[:, None])).to(dtype).to(FACTOR)

        # 3. Its part of the sum; nothing to read before the first block.
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


@triton.jit(do_not_specialize=["tokens", "shares"])
def add_curvature_shares_kernel(
    order,
    live,
    sums,
    product,
    tokens,
    shares,
    width,
    COMPACT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """product ``[T, H]`` from the shares of the vocabulary, added in order; zeros for dead tokens."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    in_tokens = t < tokens
    row = t.to(tl.int64)
    alive = in_tokens
    if COMPACT:
        row = tl.load(order + t, mask=in_tokens, other=0)
        alive = t < tl.load(live).to(tl.int32)
    for start in range(0, width, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        in_width = (h < width)[None, :]
        value = tl.zeros((BLOCK_T, BLOCK_H), dtype=ACCUMULATOR)
        place = t.to(tl.int64)
        for _ in range(0, shares):
            value += tl.load(sums + place[:, None] * width + h[None, :], mask=alive[:, None] & in_width, other=0.0)
            place += tokens
        tl.store(
            product + row[:, None] * width + h[None, :],
            value.to(product.dtype.element_ty),
            mask=in_tokens[:, None] & in_width,
        )


class Blocks(NamedTuple):
    """Sizes of a program's tiles and what the compiler gets to work with."""

    tokens: int
    vocabulary: int
    inputs: int
    outputs: int
    warps: int
    stages: int


def choose_blocks(dtype: torch.dtype, target: int, *, tangents: bool) -> Blocks:
    """Blocks that fit registers (no spills) and the shared memory of `target`: 163 KB, but 99 KB on 86 and 89."""
    small_memory = target in {86, 89, 120}
    if dtype.itemsize > 2:
        return Blocks(64, 64, 32, 32, 8, 2) if target >= 90 and not small_memory else Blocks(64, 32, 16, 32, 8, 2)
    if target >= 90 and not small_memory:
        return Blocks(64, 128 if tangents else 256, 64, 64, 8, 3)
    return Blocks(64, 128, 32, 64, 8, 2 if small_memory else 3)


class Tokens(NamedTuple):
    """What to predict ``[T]``, and which tokens to leave out.

    If `compact`, `order` ``[T]`` numbers the tokens that carry loss first, and `live` says how many those are; else all
    of them do, and neither is read.
    """

    targets: Tensor
    order: Tensor
    live: Tensor
    compact: bool


class _Plan(NamedTuple):
    """How the work of a launch is cut."""

    blocks: Blocks
    token_blocks: int
    column_blocks: int
    columns: int
    shares: int


def _plan(hidden: Tensor, head: Tensor, *, tangents: bool) -> _Plan:
    blocks = choose_blocks(hidden.dtype, capability(hidden.device), tangents=tangents)
    token_blocks = triton.cdiv(hidden.shape[0], blocks.tokens)
    column_blocks = triton.cdiv(head.shape[0], blocks.vocabulary)
    wanted = min(max(1, _PROGRAMS // max(1, token_blocks)), column_blocks)
    columns = triton.cdiv(column_blocks, wanted)
    return _Plan(blocks, token_blocks, column_blocks, columns, triton.cdiv(column_blocks, columns))


def _options(hidden: Tensor, plan: _Plan) -> dict[str, Any]:
    blocks = plan.blocks
    return {
        "FACTOR": factor(hidden.dtype),
        "ACCUMULATOR": accumulator(hidden.dtype),
        "PRECISION": precision(hidden.dtype),
        "BLOCK_T": blocks.tokens,
        "BLOCK_V": blocks.vocabulary,
        "BLOCK_K": blocks.inputs,
        "BLOCK_H": blocks.outputs,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _nll(hidden: Tensor, head: Tensor, tokens: Tokens, *, wants_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """NLL ``[T]``, log-sum-exp ``[T]`` and, if wanted, gradient ``[T, H]``."""
    count, width = hidden.shape
    plan = _plan(hidden, head, tangents=False)
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
        **_options(hidden, plan),
    )
    launch(
        add_nll_shares_kernel,
        (triton.cdiv(count, _ROW_BLOCK),),
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
        BLOCK_T=_ROW_BLOCK,
        BLOCK_H=_WIDTH_BLOCK,
        num_warps=4,
    )
    return nll, log_totals, gradient


def _curvature(
    hidden: Tensor, direction: Tensor, gradient: Tensor, head: Tensor, tokens: Tokens, log_totals: Tensor
) -> Tensor:
    """Hessian of each token's NLL along its direction, ``[T, H]``."""
    count, width = hidden.shape
    plan = _plan(hidden, head, tangents=True)
    sums = hidden.new_empty(plan.shares, count, width, dtype=sum_dtype(hidden.dtype))
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
        **_options(hidden, plan),
    )
    launch(
        add_curvature_shares_kernel,
        (triton.cdiv(count, _ROW_BLOCK),),
        tokens.order,
        tokens.live,
        sums,
        product,
        count,
        plan.shares,
        width,
        COMPACT=tokens.compact,
        ACCUMULATOR=accumulator(hidden.dtype),
        BLOCK_T=_ROW_BLOCK,
        BLOCK_H=_WIDTH_BLOCK,
        num_warps=4,
    )
    return product


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
    return (nll.view_as(weights) * weights).sum(-1).to(hidden.dtype)


class _TokenNll(torch.autograd.Function):
    """Per-token NLL ``[T]`` in the accumulator's dtype; its gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, tokens: Tokens) -> Tensor:
        nll, log_totals, gradient = _nll(hidden, head, tokens, wants_gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(hidden, head, log_totals, gradient)
        ctx.tokens = tokens
        return nll

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        hidden, head, log_totals, gradient = ctx.saved_tensors
        slope: Tensor = _TokenNllGradient.apply(hidden, head, ctx.tokens, log_totals, gradient)  # type: ignore[no-untyped-call]
        return (upstream[0][:, None] * slope).to(hidden.dtype), None, None


class _TokenNllGradient(torch.autograd.Function):
    """(softmax − onehot) W, ``[T, H]``, already computed in the forward pass; differentiable once more."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, tokens: Tokens, log_totals: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, head, log_totals, gradient)
        ctx.tokens = tokens
        return gradient.view_as(gradient)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, log_totals, gradient = ctx.saved_tensors
        return _curvature(hidden, direction, gradient, head, ctx.tokens, log_totals), None, None, None, None


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
