"""y = x Wᵀ + b + s (x Aᵀ) Bᵀ in one kernel, and its derivatives from that kernel and one more.

Everything here is bilinear in (x, adapter), so two kernels serve all orders of derivatives:

- `lora_linear_kernel`: ``x Wᵀ + b + s (x Aᵀ) Bᵀ``, W optional, strides free. dx = dy W + s (dy B) A is the same kernel
  on the transposes of W, B and A, which cost nothing. A program makes x Aᵀ ``[BLOCK_T, r]`` of its tokens first and
  keeps it on chip, then walks over its blocks of outputs. So the low-rank product costs r / (outputs of a program) of
  the frozen one; at rank 256, a program of a single block would spend more on it than on W.
- `token_sum_kernel` (in `token_sum`): Σ_t u_t v_tᵀ over the tokens, for dA = s (dy B)ᵀ x and dB = s dyᵀ (x Aᵀ).

Bytes at least: x, W, A, B once and y once; with a gradient to come, x Aᵀ ``[D, T, r]`` is written too, which spares the
backward pass a second product with x. Memory sees each of them once: programs with consecutive numbers share a block of
W's rows and differ in tokens, so that what several programs read is in the L2 cache when the next one asks for it.
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
from torch.nn import functional

from kernels.dispatch import capability, is_differentiated, launch
from kernels.model_shapes import ModelShape
from kernels.triton_ops.numbers import accumulator, check_dtype, factor, precision
from kernels.triton_ops.programs import PROGRAMS
from kernels.triton_ops.token_sum import token_sum

__all__ = ["PRODUCTS", "aot_cases", "lora_linear"]

PRODUCTS = frozenset({"lora_linear_kernel"})

MAX_RANK = 256

# Tokens of a document up to which a tile of the tensor cores, which has 16 rows, would hold those of one document only.
_FEW_TOKENS = 16


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
    token_block = program % token_blocks
    group = (program // token_blocks) % groups
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

    Returns:
        y ``[D, T, out]`` (empty if `only_low`) and x Aᵀ ``[D, T, r]`` (empty unless asked for).
    """
    documents, tokens, _ = x.shape
    outputs, rank = b.shape[1:]
    y = x.new_empty(documents, 0 if only_low else tokens, outputs) if add_to is None else add_to
    low_product = x.new_empty(documents, tokens if low or only_low else 0, rank)
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


def _launch(x: Tensor, a: Tensor, b: Tensor, scale: float, y: Tensor | None, low: Tensor, terms: _Launch) -> None:
    documents, tokens, inputs = x.shape
    outputs, rank = b.shape[1:]
    rank_block = max(16, triton.next_power_of_2(rank))
    blocks = choose_blocks(x.dtype, rank_block, tokens, capability(x.device), terms.frozen)
    token_blocks = triton.cdiv(tokens, blocks.tokens)
    column_blocks = 0 if y is None else triton.cdiv(outputs, blocks.outputs)
    # Few groups spare low-rank products, many keep all multiprocessors busy.
    groups = min(max(1, PROGRAMS // max(1, token_blocks * documents)), max(1, column_blocks))
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


def lora_linear(
    x: Tensor,
    weight: Tensor,
    row_scales: Tensor | None,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    gradients: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """`kernels.lora_linear` in Triton: twice differentiable in x, a and b, once where there are `gradients` to add to.

    Raises:
        ValueError: the rank or a dtype is none that the kernel has.
    """
    _check(x, a)
    learns = is_differentiated(x, a, b)
    if not learns and x.shape[0] > 1 and x.shape[1] <= _FEW_TOKENS and row_scales is None and weight.dtype == x.dtype:
        # A decode step: W is read once for all documents by one plain product, and each adds its own adapter's.
        return apply(x, None, a, b, scale, add_to=functional.linear(x, weight, bias))[0]
    frozen = Frozen(weight, row_scales, bias)
    y: Tensor = _LoraLinear.apply(x, a, b, frozen, scale, gradients)  # type: ignore[no-untyped-call]
    return y


def _check(x: Tensor, a: Tensor) -> None:
    check_dtype("x", x.dtype)
    if not 1 <= a.shape[1] <= MAX_RANK:
        raise ValueError(f"a: rank {a.shape[1]} is not between 1 and {MAX_RANK}")


class _LoraLinear(torch.autograd.Function):
    """y; its gradient is a function of its own, so that it can be differentiated again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        frozen: Frozen,
        scale: float,
        gradients: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        y, low = apply(x, frozen, a, b, scale, low=ctx.needs_input_grad[2])
        # Needed where B learns. It is no input of its own to the derivative: that is a formula in x and A.
        ctx.save_for_backward(x, a, b, low)
        ctx.frozen, ctx.scale, ctx.gradients = frozen, scale, gradients
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, low = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if ctx.gradients is not None:
            if torch.is_grad_enabled():
                raise RuntimeError("gradients: a pass that adds to buffers cannot be differentiated again")
            dx, _, _ = _first_order(upstream[0], x, a, b, low, ctx.frozen, ctx.scale, wanted, ctx.gradients)
            return dx, None, None, None, None, None
        first_order = _LoraLinearGradient.apply(upstream[0], x, a, b, low, ctx.frozen, ctx.scale, wanted)  # type: ignore[no-untyped-call]
        gradient = tuple(part if needed else None for part, needed in zip(first_order, wanted, strict=True))
        return *gradient, None, None, None


def _first_order(
    dy: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    low: Tensor,
    frozen: Frozen,
    scale: float,
    wanted: tuple[bool, bool, bool],
    into: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy W + s (dy B) A, dA = s (dy B)ᵀ x, dB = s dyᵀ (x Aᵀ), each if wanted; dA, dB added to `into` if given."""
    dx, da, db = None, None, None
    low_dy = dy
    # First, while nothing but dy is in the cache: the next launch wants all of it again, and W beside it.
    if wanted[2]:
        db = token_sum(dy, low, scale, like=b, add_to=None if into is None else into[1])
    if wanted[0] or wanted[1]:
        made, low_dy = apply(dy, frozen, b.mT, a.mT, scale, transposed=True, low=wanted[1], only_low=not wanted[0])
        dx = made if wanted[0] else None
    if wanted[1]:
        da = token_sum(low_dy, x, scale, like=a, add_to=None if into is None else into[0])
    return dx, da, db


class _LoraLinearGradient(torch.autograd.Function):
    """The gradient of `_LoraLinear` as a function of dy, x, A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        low: Tensor,
        frozen: Frozen,
        scale: float,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(dy, x, a, b)
        ctx.frozen, ctx.scale = frozen, scale
        ctx.set_materialize_grads(False)
        parts = _first_order(dy, x, a, b, low, frozen, scale, wanted, None)
        return tuple(dy.new_empty(0) if part is None else part for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        """Derivatives of <e, dx> + <F, dA> + <G, dB> for the directions e, F, G."""
        dy, x, a, b = ctx.saved_tensors
        e, f, g = directions
        frozen, scale = ctx.frozen, ctx.scale
        into_dy, into_x, into_a, into_b = None, None, None, None
        if e is not None:
            # e Wᵀ + s (e Aᵀ) Bᵀ, and both adapters' slopes along e.
            into_dy, low_e = apply(e, frozen._replace(bias=None), a, b, scale, low=True)
            _, low_dy = apply(dy, None, b.mT, a.mT, scale, only_low=True)
            into_a = token_sum(low_dy, e, scale, like=a)
            into_b = token_sum(dy, low_e, scale, like=b)
        if f is not None:
            # s (x Fᵀ) Bᵀ to dy, s (dy B) F to x.
            into_dy, low_x = apply(x, None, f, b, scale, add_to=into_dy, low=True)
            into_x, _ = apply(dy, None, b.mT, f.mT, scale)
            into_b = token_sum(dy, low_x, scale, like=b, add_to=into_b)
        if g is not None:
            # s (x Aᵀ) Gᵀ to dy, s (dy G) A to x.
            into_dy, _ = apply(x, None, a, g, scale, add_to=into_dy)
            into_x, low_dy = apply(dy, None, g.mT, a.mT, scale, add_to=into_x, low=True)
            into_a = token_sum(low_dy, x, scale, like=a, add_to=into_a)
        return into_dy, into_x, into_a, into_b, None, None, None, None


def aot_cases(shape: ModelShape) -> Iterator[tuple[str, Callable[[], object]]]:
    """The inner loop's passes and their derivatives, the same with 8-bit weights, and decoding."""

    def tensors(
        documents: int, tokens: int, inputs: int, outputs: int, rank: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes = ((documents, tokens, inputs), (outputs, inputs), (documents, rank, inputs), (documents, outputs, rank))
        x, weight, a, b = (torch.empty(size, dtype=dtype, device="meta") for size in sizes)
        return x, weight, a, b

    def train(inputs: int, outputs: int, rank: int, dtype: torch.dtype, *, bits: int, order: int) -> None:
        x, weight, a, b = tensors(1, 4096, inputs, outputs, rank, dtype)
        learned = [tensor.requires_grad_() for tensor in (x, a, b)]
        row_scales = torch.empty(outputs, device="meta") if bits == 8 else None
        bias = torch.empty(outputs, dtype=dtype, device="meta")
        weight = weight.to(torch.int8) if bits == 8 else weight
        if order == 1:
            into = torch.empty_like(a, dtype=torch.float32), torch.empty_like(b, dtype=torch.float32)
            y = lora_linear(x, weight, row_scales, bias, a, b, 1.0, into)
            torch.autograd.grad(y, learned, torch.empty_like(y), allow_unused=True)
        for offset in (None, bias):
            y = lora_linear(x, weight, row_scales, offset, a, b, 1.0, None)
            first = torch.autograd.grad(y, learned, torch.empty_like(y), create_graph=order == 2)
            if order == 2:
                torch.autograd.grad(first, learned, [torch.empty_like(part) for part in first])

    def decode(inputs: int, outputs: int, rank: int, rows: int) -> None:
        x, weight, a, b = tensors(rows, 1, inputs, outputs, rank, torch.bfloat16)
        lora_linear(x, weight, None, None, a, b, 1.0, None)

    for inputs, outputs in shape.linears:
        size = f"{inputs}x{outputs}"
        for rank in (16, 256):
            yield (
                f"bfloat16 rank {rank} {size}",
                partial(train, inputs, outputs, rank, torch.bfloat16, bits=16, order=2),
            )
            yield (
                f"bfloat16 rank {rank} into {size}",
                partial(train, inputs, outputs, rank, torch.bfloat16, bits=16, order=1),
            )
            for rows in (1, 8):
                yield f"bfloat16 decode rank {rank} rows {rows} {size}", partial(decode, inputs, outputs, rank, rows)
            yield f"int8 rank {rank} {size}", partial(train, inputs, outputs, rank, torch.bfloat16, bits=8, order=1)
            yield f"float32 rank {rank} {size}", partial(train, inputs, outputs, rank, torch.float32, bits=32, order=1)
