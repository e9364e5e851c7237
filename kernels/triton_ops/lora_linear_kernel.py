"""The kernel of y = x Wᵀ + b + s (x Aᵀ) Bᵀ, the sizes of its tiles, and its launch.

A program makes x Aᵀ ``[BLOCK_T, r]`` of its tokens first and keeps it on chip, then walks over its blocks of outputs.
So the low-rank product costs r / (outputs of a program) of the frozen one; at rank 256, a program of a single block
would spend more on it than on W. A program reads its tokens' part of x once for x Aᵀ and once for each block of
outputs. Programs with consecutive numbers share it and have different outputs, and so many do that the parts which run
at one time fit the L2 cache together: x is read once from memory, and W once for each wave of programs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import capability, launch
from kernels.triton_ops.numbers import accumulator, factor, precision
from kernels.triton_ops.programs import CACHED_BYTES, PROGRAMS, count_parts

__all__ = ["Frozen", "apply", "choose_blocks", "lora_linear_kernel"]


@triton.jit(do_not_specialize=["tokens", "token_blocks", "groups", "column_blocks", "columns"])
def lora_linear_kernel(
    x,
    weight,
    row_scales,
    bias,
    a,
    b,
    y,
    low,
    scale,
    tokens,
    inputs,
    outputs,
    rank,
    token_blocks,
    groups,
    column_blocks,
    columns,
    x_d,
    x_t,
    x_k,
    w_n,
    w_k,
    a_d,
    a_r,
    a_k,
    b_d,
    b_n,
    b_r,
    y_d,
    y_t,
    y_n,
    low_d,
    low_t,
    low_r,
    HAS_WEIGHT: tl.constexpr,
    SCALED_AXIS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD: tl.constexpr,
    STORE_LOW: tl.constexpr,
    EVEN_K: tl.constexpr,
    FACTOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """A program: BLOCK_T tokens of one document, `columns` blocks of BLOCK_N outputs, from one block after the other.

    SCALED_AXIS says which index of W carries the scales of its 8-bit rows: 0 the outputs, 1 the inputs, -1 none.
    """
    dtype = x.dtype.element_ty
    program = tl.program_id(0)
    group = program % groups
    token_block = (program // groups) % token_blocks
    document = (program // (token_blocks * groups)).to(tl.int64)

    first_token = token_block.to(tl.int64) * BLOCK_T
    t = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    r = tl.arange(0, BLOCK_R)
    in_tokens = (first_token + t < tokens)[:, None]
    x_tiles = x + document * x_d + first_token * x_t + t[:, None] * x_t + k[None, :] * x_k

    # 1. The low-rank product of these tokens, which stays on chip.
    a_tiles = a + document * a_d + r[None, :] * a_r + k[:, None] * a_k
    low_sum = tl.zeros((BLOCK_T, BLOCK_R), dtype=ACCUMULATOR)
    for start in range(0, inputs, BLOCK_K):
        if EVEN_K:
            x_tile = tl.load(x_tiles + start * x_k, mask=in_tokens, other=0.0)
            a_tile = tl.load(a_tiles + start * a_k, mask=(r < rank)[None, :], other=0.0)
        else:
            in_inputs = start + k < inputs
            x_tile = tl.load(x_tiles + start * x_k, mask=in_tokens & in_inputs[None, :], other=0.0)
            a_tile = tl.load(a_tiles + start * a_k, mask=in_inputs[:, None] & (r < rank)[None, :], other=0.0)
        a_tile = a_tile.to(dtype).to(FACTOR)
        low_sum = tl.dot(x_tile.to(FACTOR), a_tile, low_sum, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    if STORE_LOW:
        # Every group has it; the first one writes it.
        if group == 0:
            low_tile = low + document * low_d + first_token * low_t + t[:, None] * low_t + r[None, :] * low_r
            tl.store(low_tile, low_sum.to(low.dtype.element_ty), mask=in_tokens & (r < rank)[None, :])
    scaled_low = (low_sum * scale).to(dtype).to(FACTOR)

    # 2. One block of outputs after the other.
    for column in range(group * columns, tl.minimum((group + 1) * columns, column_blocks)):
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        in_outputs = (n < outputs)[None, :]
        total = tl.zeros((BLOCK_T, BLOCK_N), dtype=ACCUMULATOR)
        if HAS_WEIGHT:
            w_tiles = weight + n[None, :].to(tl.int64) * w_n + k[:, None] * w_k
            for start in range(0, inputs, BLOCK_K):
                if EVEN_K:
                    x_tile = tl.load(x_tiles + start * x_k, mask=in_tokens, other=0.0)
                    w_tile = tl.load(w_tiles + start * w_k, mask=in_outputs, other=0.0)
                else:
                    in_inputs = start + k < inputs
                    x_tile = tl.load(x_tiles + start * x_k, mask=in_tokens & in_inputs[None, :], other=0.0)
                    w_mask = in_inputs[:, None] & in_outputs
                    w_tile = tl.load(w_tiles + start * w_k, mask=w_mask, other=0.0)
                if SCALED_AXIS == 1:
                    row_scale = tl.load(row_scales + start + k, mask=start + k < inputs, other=0.0)
                    w_tile = w_tile.to(ACCUMULATOR) * row_scale[:, None]
                if SCALED_AXIS == 0:
                    w_tile = w_tile.to(ACCUMULATOR)
                w_tile = w_tile.to(dtype).to(FACTOR)
                total = tl.dot(x_tile.to(FACTOR), w_tile, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            if SCALED_AXIS == 0:
                total *= tl.load(row_scales + n, mask=n < outputs, other=0.0)[None, :]
        b_tile = tl.load(
            b + document * b_d + r[:, None] * b_r + n[None, :] * b_n, mask=(r < rank)[:, None] & in_outputs, other=0.0
        )
        b_tile = b_tile.to(dtype).to(FACTOR)
        total = tl.dot(scaled_low, b_tile, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        if HAS_BIAS:
            total += tl.load(bias + n, mask=n < outputs, other=0.0).to(ACCUMULATOR)[None, :]
        y_tile = y + document * y_d + first_token * y_t + t[:, None] * y_t + n[None, :] * y_n
        if ADD:
            total += tl.load(y_tile, mask=in_tokens & in_outputs, other=0.0).to(ACCUMULATOR)
        tl.store(y_tile, total.to(y.dtype.element_ty), mask=in_tokens & in_outputs)


class Frozen(NamedTuple):
    """The frozen map: weight ``[out, in]``, scales ``[out]`` of its rows if 8 bits wide, bias ``[out]`` or None."""

    weight: Tensor
    row_scales: Tensor | None = None
    bias: Tensor | None = None


class Blocks(NamedTuple):
    """Sizes of a program's tiles and what the compiler gets to work with."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def choose_blocks(dtype: torch.dtype, rank_block: int, tokens: int, target: int, frozen: Frozen | None) -> Blocks:
    """Blocks that fit registers (no spills) and the shared memory of `target`: 163 KB, but 99 KB on 86 and 89.

    Hopper's tensor cores take their factors from shared memory, the older ones from registers, which are scarce there.
    """
    small_memory = target in {86, 89, 120}
    hopper = target in {90, 100}
    quantised = frozen is not None and frozen.row_scales is not None
    if tokens <= 32:
        # A decode step waits for W alone: few tokens, deep prefetch.
        depth = 64 if dtype.itemsize == 2 and rank_block <= 128 else 32
        return Blocks(16, 64, depth, 4, 2 if small_memory else 3)
    if dtype.itemsize > 2:
        if hopper:
            return Blocks(64, 64, 32, 8, 2)
        return Blocks(64, 64 if rank_block <= 16 else 32, 16, 4, 2)
    if rank_block <= 64:
        return Blocks(128, 128, 64 if hopper or not (small_memory or quantised) else 32, 8, 3)
    if small_memory and frozen is None and rank_block > 128:
        # Without W, it is the blocks of B that are prefetched.
        return Blocks(128, 32, 32, 8, 2)
    deep = hopper or not (small_memory or quantised or rank_block > 128)
    return Blocks(128, 64, 64 if deep else 32, 8, 2 if small_memory else 3)


def _wide_rank(target: int) -> int:
    """Most ranks of a launch in float32, on either kind of tensor cores."""
    return 64 if target in {90, 100} else 32


def apply(
    x: Tensor,
    frozen: Frozen | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    transposed: bool = False,
    add_to: Tensor | None = None,
    low: bool = False,
    only_low: bool = False,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel.

    Args:
        x: ``[D, T, in]``.
        frozen: the frozen map, or None for the low-rank term alone.
        a: ``[D, r, in]``.
        b: ``[D, out, r]``.
        scale: s.
        transposed: use the frozen map's transpose, without its bias; a and b are given as the kernel needs them.
        add_to: ``[D, T, out]`` to add the result to, in place.
        low: return x Aᵀ too.
        only_low: return nothing but x Aᵀ.
        into: what to return, to be written to; else, without `add_to` either, new tensors.

    Returns:
        y ``[D, T, out]`` (empty if `only_low`) and x Aᵀ ``[D, T, r]`` (empty unless asked for).
    """
    documents, tokens, _ = x.shape
    outputs, rank = b.shape[1:]
    if into is None:
        y = x.new_empty(documents, 0 if only_low else tokens, outputs) if add_to is None else add_to
        low_product = x.new_empty(documents, tokens if low or only_low else 0, rank)
    else:
        y, low_product = into
    launched = _Launch(frozen, transposed, add_to is not None, low or only_low)
    # A product of float32 takes three times the registers: wider ranks go part by part, and y is read again for each.
    width = rank if x.dtype.itemsize == 2 else _wide_rank(capability(x.device))
    for start in range(0, rank, width):
        part = slice(start, start + width)
        _launch(x, a[:, part], b[..., part], scale, None if only_low else y, low_product[..., part], launched)
        launched = launched._replace(frozen=None, add=True)
    return y, low_product


class _Launch(NamedTuple):
    """Which terms a launch of the kernel has."""

    frozen: Frozen | None
    transposed: bool
    add: bool
    low: bool


def _count_groups(token_blocks: int, column_blocks: int, part_bytes: int) -> int:
    """How many programs share the outputs of a block of tokens, whose part of x has `part_bytes`.

    Few spare low-rank products; many keep all multiprocessors busy, and what those that run together read in the cache,
    where they read it again for each block of outputs while W and y pass by.
    """
    to_fit = -(-PROGRAMS * part_bytes // CACHED_BYTES) if token_blocks * part_bytes > CACHED_BYTES else 1
    return min(max(count_parts(token_blocks), to_fit), max(1, column_blocks))


def _launch(x: Tensor, a: Tensor, b: Tensor, scale: float, y: Tensor | None, low: Tensor, terms: _Launch) -> None:
    documents, tokens, inputs = x.shape
    outputs, rank = b.shape[1:]
    rank_block = max(16, triton.next_power_of_2(rank))
    blocks = choose_blocks(x.dtype, rank_block, tokens, capability(x.device), terms.frozen)
    token_blocks = triton.cdiv(tokens, blocks.tokens)
    column_blocks = 0 if y is None else triton.cdiv(outputs, blocks.outputs)
    groups = _count_groups(token_blocks * documents, column_blocks, blocks.tokens * inputs * x.itemsize)
    columns = triton.cdiv(column_blocks, groups)
    groups = triton.cdiv(column_blocks, columns) if columns else 1
    frozen = terms.frozen
    weight, row_scales, bias = (None, None, None) if frozen is None else frozen
    if weight is None:
        weight = x[0]
    elif terms.transposed:
        weight, bias = weight.T, None
    out = x if y is None else y
    launch(
        lora_linear_kernel,
        (token_blocks * groups * documents,),
        x,
        weight,
        x if row_scales is None else row_scales,
        x if bias is None else bias,
        a,
        b,
        out,
        low,
        scale,
        tokens,
        inputs,
        outputs,
        rank,
        token_blocks,
        groups,
        column_blocks,
        columns,
        *x.stride(),
        *weight.stride(),
        *a.stride(),
        *b.stride(),
        *out.stride(),
        *low.stride(),
        HAS_WEIGHT=frozen is not None,
        SCALED_AXIS=-1 if row_scales is None else int(terms.transposed),
        HAS_BIAS=bias is not None,
        ADD=terms.add,
        STORE_LOW=terms.low,
        EVEN_K=inputs % blocks.inputs == 0,
        FACTOR=factor(x.dtype),
        ACCUMULATOR=accumulator(x.dtype),
        PRECISION=precision(x.dtype),
        BLOCK_T=blocks.tokens,
        BLOCK_N=blocks.outputs,
        BLOCK_K=blocks.inputs,
        BLOCK_R=rank_block,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
