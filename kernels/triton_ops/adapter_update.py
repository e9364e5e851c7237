"""One optimiser step over the flat adapter buffers of D documents (`kernels.adapter_update`).

A program takes a block of one tensor of one document, so that its step size is one number from the table. AdamW is a
single launch: θ, g, m, v once in, θ, m, v once out. The RMS rule needs a tensor's mean square before it can move its
first element, which takes two: the first sums the squares of fixed parts, the second adds the parts in order (no
atomics: the same bits in every run) and moves. It goes through the buffer backwards, so that what the first has read
last is still in the L2 cache. Both go over a few groups of tensors, one after the other, small enough that g is still
there when it is wanted again; a buffer of more than a few such groups is not worth their launches, and is read twice.

Bytes at least: AdamW 7 P numbers, the RMS rule 3 P (4 P where g is read twice).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import launch
from kernels.model_shapes import ModelShape
from kernels.triton_ops.numbers import accumulator, check_dtype, sum_dtype

__all__ = ["adamw_update", "aot_cases", "rms_update"]

_BLOCK = 2048
# Elements whose squares one program adds up, and most such parts of a tensor.
_PART = 1 << 16
_MAX_PARTS = 64
# Bytes of a group's gradients: with θ in and out, three times that fit into an L2 cache of 40 MB (A100) or 50 (H100).
_GROUP_BYTES = 12 << 20
_MOST_GROUPS = 4
# Tables cut at multiples of this many tensors stay aligned to 16 bytes, as the compiled kernels take them.
_ALIGNED_TENSORS = 4


@triton.jit
def _number(value, DTYPE: tl.constexpr):
    """A setting in the dtype that is computed in. Unless a kernel says float64, it gets Python's numbers as float32."""
    return tl.full((), value, DTYPE)


@triton.jit(do_not_specialize=["first_decay", "second_decay", "first_scale", "second_scale"])
def adamw_kernel(
    theta,
    gradient,
    first,
    second,
    step_sizes,
    starts,
    new_theta,
    new_first,
    new_second,
    first_decay: tl.float64,
    second_decay: tl.float64,
    first_scale: tl.float64,
    second_scale: tl.float64,
    weight_decay: tl.float64,
    epsilon: tl.float64,
    theta_d,
    gradient_d,
    first_d,
    second_d,
    size,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program: a block of a tensor (grid axis 0) of the table (axis 1) of a document (axis 2)."""
    tensor = tl.program_id(1)
    document = tl.program_id(2).to(tl.int64)
    start = tl.load(starts + tensor) + tl.program_id(0).to(tl.int64) * BLOCK
    end = tl.load(starts + tensor + 1)
    if start >= end:
        return
    rate = tl.load(step_sizes + tensor).to(ACCUMULATOR)
    decay_1, decay_2 = _number(first_decay, ACCUMULATOR), _number(second_decay, ACCUMULATOR)
    scale_1, scale_2 = _number(first_scale, ACCUMULATOR), _number(second_scale, ACCUMULATOR)
    floor = _number(epsilon, ACCUMULATOR)
    i = start + tl.arange(0, BLOCK)
    inside = i < end
    g = tl.load(gradient + document * gradient_d + i, mask=inside, other=0.0).to(ACCUMULATOR)
    m = tl.load(first + document * first_d + i, mask=inside, other=0.0).to(ACCUMULATOR)
    v = tl.load(second + document * second_d + i, mask=inside, other=0.0).to(ACCUMULATOR)
    value = tl.load(theta + document * theta_d + i, mask=inside, other=0.0).to(ACCUMULATOR)
    m = g + decay_1 * (m - g)
    v = g * g + decay_2 * (v - g * g)
    move = m * scale_1 / tl.sqrt(v * scale_2 + floor * floor) + _number(weight_decay, ACCUMULATOR) * value
    out = document * size + i
    tl.store(new_first + out, m.to(new_first.dtype.element_ty), mask=inside)
    tl.store(new_second + out, v.to(new_second.dtype.element_ty), mask=inside)
    tl.store(new_theta + out, (value - rate * move).to(new_theta.dtype.element_ty), mask=inside)


@triton.jit
def square_sum_kernel(
    gradient, starts, sums, gradient_d, parts, part_size, ACCUMULATOR: tl.constexpr, BLOCK: tl.constexpr
):
    """sums ``[D, M, parts]``: Σ g² over a part (grid axis 0) of a tensor (axis 1) of a document (axis 2)."""
    part = tl.program_id(0)
    tensor = tl.program_id(1)
    document = tl.program_id(2).to(tl.int64)
    start = tl.load(starts + tensor) + part.to(tl.int64) * part_size
    end = tl.minimum(tl.load(starts + tensor + 1), start + part_size)
    total = tl.zeros((BLOCK,), dtype=ACCUMULATOR)
    for first in range(start, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        g = tl.load(gradient + document * gradient_d + i, mask=i < end, other=0.0).to(ACCUMULATOR)
        total += g * g
    tl.store(sums + (document * tl.num_programs(1) + tensor) * parts + part, tl.sum(total, 0))


@triton.jit
def rms_kernel(
    theta,
    gradient,
    step_sizes,
    starts,
    sums,
    new_theta,
    epsilon: tl.float64,
    theta_d,
    gradient_d,
    size,
    parts,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """A program as in `adamw_kernel`, counted from the end of the buffers."""
    tensors = tl.num_programs(1)
    tensor = tensors - 1 - tl.program_id(1)
    document = (tl.num_programs(2) - 1 - tl.program_id(2)).to(tl.int64)
    block = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    first = tl.load(starts + tensor)
    end = tl.load(starts + tensor + 1)
    start = first + block * BLOCK
    if start >= end:
        return
    part = tl.arange(0, BLOCK_PARTS)
    squares = tl.load(sums + (document * tensors + tensor) * parts + part, mask=part < parts, other=0.0)
    mean_square = tl.sum(squares, 0) / (end - first).to(ACCUMULATOR)
    floor = _number(epsilon, ACCUMULATOR)
    factor = tl.load(step_sizes + tensor).to(ACCUMULATOR) / tl.sqrt(mean_square + floor * floor)
    i = start + tl.arange(0, BLOCK)
    inside = i < end
    g = tl.load(gradient + document * gradient_d + i, mask=inside, other=0.0).to(ACCUMULATOR)
    value = tl.load(theta + document * theta_d + i, mask=inside, other=0.0).to(ACCUMULATOR)
    moved = value - factor * g
    tl.store(new_theta + document * size + i, moved.to(new_theta.dtype.element_ty), mask=inside)


def adamw_update(
    theta: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    step_sizes: Tensor,
    sizes: Sequence[int],
    step: int,
    *,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`kernels.adamw_update` in Triton, without derivatives."""
    table = _check(theta, step_sizes, sizes)
    theta, gradient, first, second = (_rows(tensor) for tensor in (theta, gradient, *moments))
    new = tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in (theta, *moments))
    documents, size = theta.shape
    launch(
        adamw_kernel,
        (triton.cdiv(max(sizes), _BLOCK), len(sizes), documents),
        theta,
        gradient,
        first,
        second,
        step_sizes.contiguous(),
        table,
        *new,
        betas[0],
        betas[1],
        1 / (1 - betas[0] ** step),
        1 / (1 - betas[1] ** step),
        weight_decay,
        epsilon,
        *(tensor.stride(0) for tensor in (theta, gradient, first, second)),
        size,
        ACCUMULATOR=accumulator(theta.dtype),
        BLOCK=_BLOCK,
        num_warps=8,
    )
    return new[0], (new[1], new[2])


def rms_update(theta: Tensor, gradient: Tensor, step_sizes: Tensor, sizes: Sequence[int], *, epsilon: float) -> Tensor:
    """`kernels.rms_update` in Triton, without derivatives."""
    table = _check(theta, step_sizes, sizes)
    theta, gradient = _rows(theta), _rows(gradient)
    documents, size = theta.shape
    part_size = max(_PART, _BLOCK * triton.cdiv(max(sizes), _BLOCK * _MAX_PARTS))
    parts = triton.cdiv(max(sizes), part_size)
    step_sizes = step_sizes.contiguous()
    new_theta = torch.empty(theta.shape, dtype=theta.dtype, device=theta.device)
    for group in _groups(sizes, documents * gradient.itemsize):
        tensors = group.stop - group.start
        starts = table[group.start : group.stop + 1]
        sums = torch.empty(documents, tensors, parts, dtype=sum_dtype(theta.dtype), device=theta.device)
        launch(
            square_sum_kernel,
            (parts, tensors, documents),
            gradient,
            starts,
            sums,
            gradient.stride(0),
            parts,
            part_size,
            ACCUMULATOR=accumulator(theta.dtype),
            BLOCK=_BLOCK,
            num_warps=8,
        )
        launch(
            rms_kernel,
            (triton.cdiv(max(sizes[group]), _BLOCK), tensors, documents),
            theta,
            gradient,
            step_sizes[group],
            starts,
            sums,
            new_theta,
            epsilon,
            theta.stride(0),
            gradient.stride(0),
            size,
            parts,
            ACCUMULATOR=accumulator(theta.dtype),
            BLOCK=_BLOCK,
            BLOCK_PARTS=triton.next_power_of_2(parts),
            num_warps=8,
        )
    return new_theta


def _groups(sizes: Sequence[int], element_bytes: int) -> list[slice]:
    """Tensors in runs of at most `_GROUP_BYTES`; all in one where there would be more runs than are worth it.

    Args:
        sizes: elements of each tensor.
        element_bytes: bytes that an element has in the gradients of all documents.
    """
    found = []
    first = held = 0
    for start in range(0, len(sizes), _ALIGNED_TENSORS):
        added = element_bytes * sum(sizes[start : start + _ALIGNED_TENSORS])
        if held and held + added > _GROUP_BYTES:
            found.append(slice(first, start))
            first, held = start, 0
        held += added
    found.append(slice(first, len(sizes)))
    return found if len(found) <= _MOST_GROUPS else [slice(0, len(sizes))]


def _check(theta: Tensor, step_sizes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Where each tensor starts, and the last one ends, ``[M + 1]``."""
    check_dtype("theta", theta.dtype)
    if sum(sizes) != theta.shape[1]:
        raise ValueError(f"sizes: add up to {sum(sizes)}, and theta has {theta.shape[1]} elements")
    if step_sizes.shape != (len(sizes),):
        raise ValueError(f"step_sizes: shape {list(step_sizes.shape)} is not [{len(sizes)}], one for each tensor")
    return _starts(tuple(sizes), theta.device)


@lru_cache(maxsize=16)
def _starts(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, because it is the same in every step and its way to the device would be waited for."""
    return torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0).to(device)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor ``[D, P]`` with neighbours in a row; documents may lie anywhere."""
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def aot_cases(shape: ModelShape) -> Iterator[tuple[str, Callable[[], object]]]:
    """Both rules on the float32 buffer of all layers."""

    def update(rank: int) -> None:
        layer = [rank * width for inputs, outputs in shape.linears for width in (inputs, outputs)]
        sizes = layer * shape.layers
        theta = torch.empty(1, sum(sizes), device="meta")
        step_sizes = torch.empty(len(sizes), device="meta")
        adamw_update(
            theta, theta, (theta, theta), step_sizes, sizes, 1, betas=(0.9, 0.95), weight_decay=0.01, epsilon=1e-8
        )
        rms_update(theta, theta, step_sizes, sizes, epsilon=1e-8)

    for rank in (16, 256):
        yield f"float32 rank {rank}", partial(update, rank)
