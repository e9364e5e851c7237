"""How a pass over the LM head is cut into programs, and which tokens take part in it.

A program takes BLOCK_T tokens and a share of the vocabulary, block by block. Tokens without loss are numbered last, and
programs beyond the others end at once; how many there are stays on the device, so that nothing waits for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import capability
from kernels.triton_ops.numbers import accumulator, factor, precision
from kernels.triton_ops.programs import count_parts

__all__ = [
    "ROW_BLOCK",
    "WIDTH_BLOCK",
    "Blocks",
    "Plan",
    "Tokens",
    "choose_blocks",
    "count_live",
    "find_rows",
    "make_plan",
    "options",
]

# Tokens and numbers of a hidden state that a program takes when it adds up the shares of the vocabulary.
ROW_BLOCK = 16
WIDTH_BLOCK = 128


@triton.jit
def count_live(live, tokens, COMPACT: tl.constexpr):
    """Tokens that carry loss."""
    count = tokens
    if COMPACT:
        count = tl.load(live).to(tl.int32)
    return count


@triton.jit
def find_rows(order, t, in_tokens, COMPACT: tl.constexpr):
    """Where the tokens numbered t stand."""
    row = t.to(tl.int64)
    if COMPACT:
        row = tl.load(order + t, mask=in_tokens, other=0)
    return row


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
        if target >= 90 and not small_memory:
            return Blocks(64, 64, 16 if tangents else 32, 32, 8, 2)
        return Blocks(64, 32, 16, 32, 8, 2)
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


class Plan(NamedTuple):
    """How the work of a launch is cut."""

    blocks: Blocks
    token_blocks: int
    column_blocks: int
    columns: int
    shares: int


def make_plan(hidden: Tensor, head: Tensor, *, tangents: bool) -> Plan:
    """Cut a pass over the head; with `tangents`, one that makes those of the logits too."""
    blocks = choose_blocks(hidden.dtype, capability(hidden.device), tangents=tangents)
    token_blocks = triton.cdiv(hidden.shape[0], blocks.tokens)
    column_blocks = triton.cdiv(head.shape[0], blocks.vocabulary)
    wanted = min(count_parts(token_blocks), column_blocks)
    columns = triton.cdiv(column_blocks, wanted)
    return Plan(blocks, token_blocks, column_blocks, columns, triton.cdiv(column_blocks, columns))


def options(hidden: Tensor, plan: Plan) -> dict[str, Any]:
    """Constants of a kernel that goes by a plan."""
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
