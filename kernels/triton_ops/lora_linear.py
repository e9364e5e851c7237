"""y = x Wᵀ + b + s (x Aᵀ) Bᵀ and its derivatives, from one kernel and one more.

Everything here is bilinear in (x, adapter), so two kernels serve all orders of derivatives:

- `lora_linear_kernel`: ``x Wᵀ + b + s (x Aᵀ) Bᵀ``, W optional, strides free. dx = dy W + s (dy B) A is the same kernel
  on the transposes of W, B and A, which cost nothing.
- `token_sum_kernel` (in `token_sum`): Σ_t u_t v_tᵀ over the tokens, for dA = s (dy B)ᵀ x and dB = s dyᵀ (x Aᵀ).

Bytes at least: x, W, A, B once and y once; with a gradient to come, x Aᵀ ``[D, T, r]`` is written too, which spares the
backward pass a second product with x. That pass wants dy twice, for dx and for dB: where it is too large to stay in the
cache in between, slice by slice of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kernels.dispatch import is_differentiated
from kernels.model_shapes import ModelShape
from kernels.triton_ops.lora_linear_kernel import Frozen, apply
from kernels.triton_ops.numbers import check_dtype, sum_dtype
from kernels.triton_ops.programs import CACHED_BYTES
from kernels.triton_ops.token_sum import token_sum

__all__ = ["PRODUCTS", "aot_cases", "lora_linear"]

PRODUCTS = frozenset({"lora_linear_kernel"})

MAX_RANK = 256

# Tokens of a document up to which a tile of the tensor cores, which has 16 rows, would hold those of one document only.
_FEW_TOKENS = 16

# A slice of the tokens is a multiple of the blocks that a program takes.
_SLICE_STEP = 128


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
    da, db = (None, None) if into is None else into
    documents, tokens, inputs = x.shape
    dx = dy.new_empty(documents, tokens if wanted[0] else 0, inputs)
    low_dy = dy.new_empty(documents, tokens if wanted[1] else 0, a.shape[1])
    twice = wanted[2] and (wanted[0] or wanted[1])
    slices = _token_slices(dy, frozen.weight, a.shape[1]) if twice else [slice(0, tokens)]
    # Each of several slices would round the sum.
    slice_dtype = b.dtype if len(slices) == 1 else sum_dtype(b.dtype)
    for part in slices:
        # dx first, which reads dy again and again; each number is wanted once for dB, and then no more.
        if wanted[0] or wanted[1]:
            made = dx[:, part], low_dy[:, part]
            only_low = not wanted[0]
            apply(dy[:, part], frozen, b.mT, a.mT, scale, transposed=True, low=wanted[1], only_low=only_low, into=made)
        if wanted[2]:
            db = token_sum(dy[:, part], low[:, part], scale, dtype=slice_dtype, add_to=db, last_use=True)
    if wanted[1]:
        da = token_sum(low_dy, x, scale, dtype=a.dtype, add_to=da)
    if db is not None and into is None:
        db = db.to(b.dtype)
    return dx if wanted[0] else None, da, db


def _token_slices(dy: Tensor, weight: Tensor, rank: int) -> list[slice]:
    """Slices of the tokens of dy ``[D, T, out]`` that a cache keeps between two readings; else all tokens in one.

    Every slice reads W again, and reads and writes dB. So it pays only where W stays in the cache, and a slice has more
    bytes than dB in float32, in and out: by output, so many a token against eight a rank.
    """
    whole = [slice(0, dy.shape[1])]
    if dy.nbytes <= CACHED_BYTES or weight.nbytes > CACHED_BYTES:
        return whole
    documents, tokens, outputs = dy.shape
    most = CACHED_BYTES // (documents * outputs * dy.itemsize) // _SLICE_STEP * _SLICE_STEP
    if most * dy.itemsize < 8 * rank:
        return whole
    count = triton.cdiv(tokens, most)
    length = triton.cdiv(tokens, count * _SLICE_STEP) * _SLICE_STEP
    return [slice(start, min(start + length, tokens)) for start in range(0, tokens, length)]


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
            into_a = token_sum(low_dy, e, scale, dtype=a.dtype)
            into_b = token_sum(dy, low_e, scale, dtype=b.dtype)
        if f is not None:
            # s (x Fᵀ) Bᵀ to dy, s (dy B) F to x.
            into_dy, low_x = apply(x, None, f, b, scale, add_to=into_dy, low=True)
            into_x, _ = apply(dy, None, b.mT, f.mT, scale)
            into_b = token_sum(dy, low_x, scale, dtype=b.dtype, add_to=into_b)
        if g is not None:
            # s (x Aᵀ) Gᵀ to dy, s (dy G) A to x.
            into_dy, _ = apply(x, None, a, g, scale, add_to=into_dy)
            into_x, low_dy = apply(dy, None, g.mT, a.mT, scale, add_to=into_x, low=True)
            into_a = token_sum(low_dy, x, scale, dtype=a.dtype, add_to=into_a)
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
