"""Shrink and expand for a batch in which every row has its own adapter and rank (`kernels.multi_adapter`).

Shrink makes x_n A_nᵀ, a program for 16 tokens and a block of ranks of one row; expand adds s_n (…) B_nᵀ to y, a program
for 16 tokens and a block of outputs. Both end at the row's own rank: what is narrower than the widest costs less, and
nothing is read beyond it. Two launches, because each of the many programs of the second needs all ranks of the first;
in between lie N · T · r numbers. A tensor core's tile has 16 tokens, of which decoding fills one: the kernels wait for
A and B, so that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import launch
from kernels.model_shapes import ModelShape
from kernels.triton_ops.numbers import accumulator, check_dtype, factor, precision

if TYPE_CHECKING:
    from kernels.multi_adapter import RowAdapters

__all__ = ["PRODUCTS", "aot_cases", "multi_adapter"]

PRODUCTS = frozenset({"shrink_kernel", "expand_kernel"})

_BLOCK_T, _BLOCK_R, _BLOCK_K, _BLOCK_N = 16, 16, 128, 64


@triton.jit(do_not_specialize=["tokens", "token_blocks"])
def shrink_kernel(
    x,
    buffer,
    a_starts,
    ranks,
    low,
    tokens,
    inputs,
    token_blocks,
    x_n,
    x_t,
    x_k,
    low_n,
    low_t,
    FACTOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """low ``[N, T, widest]``: the first r_n columns of row n are x_n A_nᵀ, the others stay as they are."""
    dtype = x.dtype.element_ty
    row = (tl.program_id(0) // token_blocks).to(tl.int64)
    t = (tl.program_id(0) % token_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    rank = tl.load(ranks + row)
    if tl.program_id(1) * BLOCK_R < rank:
        x_tiles = x + row * x_n + t[:, None] * x_t + k[None, :] * x_k
        a_tiles = buffer + tl.load(a_starts + row) + r[None, :] * inputs + k[:, None]
        total = tl.zeros((BLOCK_T, BLOCK_R), dtype=ACCUMULATOR)
        for start in range(0, inputs, BLOCK_K):
            inside = start + k < inputs
            x_tile = tl.load(x_tiles + start * x_k, mask=(t < tokens)[:, None] & inside[None, :], other=0.0)
            a_tile = tl.load(a_tiles + start, mask=inside[:, None] & (r < rank)[None, :], other=0.0)
            a_tile = a_tile.to(dtype).to(FACTOR)
            total = tl.dot(x_tile.to(FACTOR), a_tile, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        place = low + row * low_n + t[:, None] * low_t + r[None, :]
        tl.store(place, total.to(low.dtype.element_ty), mask=(t < tokens)[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["tokens", "token_blocks"])
def expand_kernel(
    low,
    buffer,
    b_starts,
    ranks,
    scales,
    y,
    tokens,
    outputs,
    token_blocks,
    low_n,
    low_t,
    y_n,
    y_t,
    y_k,
    FACTOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """y ``[N, T, out]`` += s_n low_n B_nᵀ."""
    dtype = y.dtype.element_ty
    row = (tl.program_id(0) // token_blocks).to(tl.int64)
    t = (tl.program_id(0) % token_blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    rank = tl.load(ranks + row)
    low_tiles = low + row * low_n + t[:, None] * low_t + r[None, :]
    b_tiles = buffer + tl.load(b_starts + row) + n[None, :] * rank + r[:, None]
    total = tl.zeros((BLOCK_T, BLOCK_N), dtype=ACCUMULATOR)
    for start in range(0, rank, BLOCK_R):
        inside = start + r < rank
        low_tile = tl.load(low_tiles + start, mask=(t < tokens)[:, None] & inside[None, :], other=0.0)
        b_tile = tl.load(b_tiles + start, mask=inside[:, None] & (n < outputs)[None, :], other=0.0)
        b_tile = b_tile.to(dtype).to(FACTOR)
        total = tl.dot(low_tile.to(FACTOR), b_tile, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    place = y + row * y_n + t[:, None] * y_t + n[None, :] * y_k
    written = (t < tokens)[:, None] & (n < outputs)[None, :]
    total = total * tl.load(scales + row) + tl.load(place, mask=written, other=0.0).to(ACCUMULATOR)
    tl.store(place, total.to(dtype), mask=written)


def multi_adapter(y: Tensor, x: Tensor, adapters: RowAdapters) -> Tensor:
    """`kernels.multi_adapter` in Triton.

    Raises:
        ValueError: a dtype is none that the kernels have.
    """
    check_dtype("x", x.dtype)
    rows, tokens, inputs = x.shape
    outputs = y.shape[2]
    token_blocks = triton.cdiv(tokens, _BLOCK_T)
    low = torch.empty(rows, tokens, adapters.widest, dtype=x.dtype, device=x.device)
    numbers = {"FACTOR": factor(x.dtype), "ACCUMULATOR": accumulator(x.dtype), "PRECISION": precision(x.dtype)}
    launch(
        shrink_kernel,
        (rows * token_blocks, triton.cdiv(adapters.widest, _BLOCK_R)),
        x,
        adapters.buffer,
        adapters.a_starts,
        adapters.ranks,
        low,
        tokens,
        inputs,
        token_blocks,
        *x.stride(),
        *low.stride()[:2],
        **numbers,
        BLOCK_T=_BLOCK_T,
        BLOCK_R=_BLOCK_R,
        BLOCK_K=_BLOCK_K,
        num_warps=4,
        num_stages=3,
    )
    launch(
        expand_kernel,
        (rows * token_blocks, triton.cdiv(outputs, _BLOCK_N)),
        low,
        adapters.buffer,
        adapters.b_starts,
        adapters.ranks,
        adapters.scales,
        y,
        tokens,
        outputs,
        token_blocks,
        *low.stride()[:2],
        *y.stride(),
        **numbers,
        BLOCK_T=_BLOCK_T,
        BLOCK_R=32,
        BLOCK_N=_BLOCK_N,
        num_warps=4,
        num_stages=3,
    )
    return y


def aot_cases(shape: ModelShape) -> Iterator[tuple[str, Callable[[], object]]]:
    """A decode step of 8 rows in each of the model's linear maps."""
    from kernels.multi_adapter import RowAdapters

    rows, widest = 8, 256

    def step(inputs: int, outputs: int) -> None:
        x, y, buffer = (
            torch.empty(size, dtype=torch.bfloat16, device="meta")
            for size in ((rows, 1, inputs), (rows, 1, outputs), (rows * widest * (inputs + outputs),))
        )
        starts = torch.empty(rows, dtype=torch.int64, device="meta")
        ranks = torch.empty(rows, dtype=torch.int32, device="meta")
        scales = torch.empty(rows, device="meta")
        multi_adapter(y, x, RowAdapters(buffer, starts, starts, ranks, scales, widest))

    for inputs, outputs in shape.linears:
        yield f"bfloat16 decode {inputs}x{outputs}", partial(step, inputs, outputs)
