"""Σ_t u_t v_tᵀ: the gradient of an adapter's tensor, summed over a document's tokens in a fixed order.

dA = s (dy B)ᵀ x and dB = s dyᵀ (x Aᵀ): in both, one factor is as wide as the layer and the other has rank r. A program
takes all r columns of the narrow one and a block of the wide one, so the wide one is read exactly once, and the cache
may be told that it is for the last time. Where there are fewer such blocks than multiprocessors, the tokens are split
into fixed parts whose sums a second kernel adds in order: the result is the same to the last bit in every run, and
there is no atomic addition anywhere.

Bytes at least: u, v once, and the sum ``[D, p, q]`` written (and read, where it is added to) once. The parts add
2 · parts · p · q · 4 bytes; `_split` keeps that below an eighth of the factors' bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import launch
from kernels.triton_ops.numbers import accumulator, factor, precision, sum_dtype
from kernels.triton_ops.programs import count_parts

__all__ = ["PRODUCTS", "token_sum"]

PRODUCTS = frozenset({"token_sum_kernel"})

_WIDE_BLOCK = 64
_ADD_BLOCK = 1024


@triton.jit(do_not_specialize=["tokens", "part_tokens", "p_blocks", "q_blocks"])
def token_sum_kernel(
    u,
    v,
    total,
    scale,
    tokens,
    part_tokens,
    p_size,
    q_size,
    p_blocks,
    q_blocks,
    u_d,
    u_t,
    u_p,
    v_d,
    v_t,
    v_q,
    total_part,
    total_d,
    total_p,
    total_q,
    ADD: tl.constexpr,
    U_EVICTION: tl.constexpr,
    FACTOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """A program: one block of the sum, one document, one part of its tokens."""
    program = tl.program_id(0)
    p_block = program % p_blocks
    q_block = (program // p_blocks) % q_blocks
    document = (program // (p_blocks * q_blocks)).to(tl.int64)
    part = tl.program_id(1).to(tl.int64)

    p = p_block * BLOCK_P + tl.arange(0, BLOCK_P)
    q = q_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    t = tl.arange(0, BLOCK_T)
    first = part * part_tokens
    last = tl.minimum(first + part_tokens, tokens)
    u_tiles = u + document * u_d + p[:, None] * u_p + t[None, :] * u_t
    v_tiles = v + document * v_d + t[:, None] * v_t + q[None, :] * v_q
    in_p = (p < p_size)[:, None]
    in_q = (q < q_size)[None, :]
    product = tl.zeros((BLOCK_P, BLOCK_Q), dtype=ACCUMULATOR)
    for start in range(first, last, BLOCK_T):
        in_part = start + t < last
        u_mask = in_p & in_part[None, :]
        u_tile = tl.load(u_tiles + start * u_t, mask=u_mask, other=0.0, eviction_policy=U_EVICTION)
        v_tile = tl.load(v_tiles + start * v_t, mask=in_part[:, None] & in_q, other=0.0)
        u_tile, v_tile = u_tile.to(FACTOR), v_tile.to(FACTOR)
        product = tl.dot(u_tile, v_tile, product, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    product *= scale
    tile = total + part * total_part + document * total_d + p[:, None] * total_p + q[None, :] * total_q
    if ADD:
        product += tl.load(tile, mask=in_p & in_q, other=0.0).to(ACCUMULATOR)
    tl.store(tile, product.to(total.dtype.element_ty), mask=in_p & in_q)


@triton.jit(do_not_specialize=["parts"])
def add_parts_kernel(
    partial,
    total,
    parts,
    rows,
    columns,
    total_d,
    total_p,
    total_q,
    ADD: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total ``[D, rows, columns]`` (+)= partial ``[parts, D, rows, columns]``, summed over the parts in order."""
    document = tl.program_id(1).to(tl.int64)
    documents = tl.num_programs(1)
    size = rows * columns
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    place = total + document * total_d + (i // columns) * total_p + (i % columns) * total_q
    addend = partial + document * size + i
    if ADD:
        value = tl.load(place, mask=inside, other=0.0).to(ACCUMULATOR)
    else:
        value = tl.zeros((BLOCK,), dtype=ACCUMULATOR)
    for _ in range(0, parts):
        value += tl.load(addend, mask=inside, other=0.0)
        addend += documents * size
    tl.store(place, value.to(total.dtype.element_ty), mask=inside)


def token_sum(
    u: Tensor,
    v: Tensor,
    scale: float,
    *,
    dtype: torch.dtype,
    add_to: Tensor | None = None,
    last_use: bool = False,
) -> Tensor:
    """s Σ_t u_t v_tᵀ for each document.

    Args:
        u: ``[D, T, p]``.
        v: ``[D, T, q]``; p or q is a rank, at most 256.
        scale: s.
        dtype: what a new sum is in.
        add_to: add the sum to this tensor ``[D, p, q]`` instead, in place; any strides.
        last_use: nothing reads the wide factor soon, so that the cache had better keep all else.

    Returns:
        The sum ``[D, p, q]``, which is `add_to` if given.
    """
    documents, tokens, rows = u.shape
    columns = v.shape[2]
    total = torch.empty(documents, rows, columns, dtype=dtype, device=u.device) if add_to is None else add_to
    # The wide factor's block always stands first: the tensor cores of Hopper want 64 rows.
    swapped = rows < columns
    if swapped:
        u, v = v, u
    p_size, q_size = u.shape[2], v.shape[2]
    # Products of float32 take three times the registers: there, the wide factor is read again for each 64 ranks.
    rank_block = min(256 if u.dtype.itemsize == 2 else 64, max(16, triton.next_power_of_2(q_size)))
    p_blocks, q_blocks = triton.cdiv(p_size, _WIDE_BLOCK), triton.cdiv(q_size, rank_block)
    block_t = 32 if u.dtype.itemsize > 2 else 64
    programs = p_blocks * q_blocks * documents
    parts, part_tokens = _split(programs, tokens, block_t, u.dtype.itemsize, q_size)
    add = add_to is not None
    if parts > 1:
        sums = torch.empty(parts, documents, rows, columns, dtype=sum_dtype(u.dtype), device=u.device)
    else:
        sums = total[None]
    into = sums.mT if swapped else sums
    launch(
        token_sum_kernel,
        (programs, parts),
        u,
        v,
        into,
        scale,
        tokens,
        part_tokens,
        p_size,
        q_size,
        p_blocks,
        q_blocks,
        *u.stride(),
        *v.stride(),
        *into.stride(),
        ADD=add and parts == 1,
        # Where several blocks of ranks read the wide factor, the first one's use is not the last.
        U_EVICTION="evict_first" if last_use and q_blocks == 1 else "",
        FACTOR=factor(u.dtype),
        ACCUMULATOR=accumulator(u.dtype),
        PRECISION=precision(u.dtype),
        BLOCK_P=_WIDE_BLOCK,
        BLOCK_Q=rank_block,
        BLOCK_T=block_t,
        num_warps=8 if rank_block > 64 else 4,
        num_stages=2 if rank_block > 128 else 3,
    )
    if parts > 1:
        launch(
            add_parts_kernel,
            (triton.cdiv(rows * columns, _ADD_BLOCK), documents),
            sums,
            total,
            parts,
            rows,
            columns,
            *total.stride(),
            ADD=add,
            ACCUMULATOR=accumulator(u.dtype),
            BLOCK=_ADD_BLOCK,
            num_warps=4,
        )
    return total


def _split(programs: int, tokens: int, block_t: int, itemsize: int, rank: int) -> tuple[int, int]:
    """Number of parts and their length in tokens, a multiple of `block_t`; of sizes alone, so the order is fixed."""
    wanted = count_parts(programs)
    # A part costs 8 bytes an element of the sum; its tokens, `itemsize` bytes an element of the wide factor.
    affordable = max(1, tokens * itemsize // (8 * 8 * rank))
    parts = min(wanted, affordable)
    part_tokens = block_t * max(1, triton.cdiv(tokens, parts * block_t))
    return max(1, triton.cdiv(tokens, part_tokens)), part_tokens
