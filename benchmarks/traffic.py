"""Bytes that the Triton kernels move, against the floor and against PEFT's sequence of operations.

    python -m benchmarks.traffic [--tokens 4096] [--cases TEXT] [--csv FILE] [--json]

Each operation runs in Triton's interpreter at the shapes of Qwen2.5-0.5B in bfloat16 (see `access_trace` for the two
counts). The floor reads each input once and writes each output once. For PEFT every operation of its sequence reads its
inputs once and writes its outputs once: what an eager torch does at least.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

# Triton decides at its import whether kernels are interpreted.
os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from benchmarks.access_trace import Access, Gpu, Trace, count_dram_bytes, record_accesses
from benchmarks.result import write_rows
from kernels import adamw_update, lora_linear, rms_update, weighted_cross_entropy
from kernels.model_shapes import MODEL_SHAPES, ModelShape
from kernels.triton_ops.vocabulary_plan import make_plan

__all__ = ["H100", "Case", "Row", "adapter_sizes", "measure", "traffic_cases"]

H100 = Gpu("H100", cache=50 << 20, processors=132)

# Of a blocked product: a tile has rows as narrow as 128 bytes. Coarser granules would be written, and read again, for a
# part of them.
_NARROW_GRANULE = 256
_GRANULE = 4 << 10
# Of the head: 7 granules are a block of 128 rows of 896 bfloat16 numbers.
_WIDE_GRANULE = 32 << 10
# Blocks of the vocabulary of a program that are interpreted.
_RECORDED = 3


@dataclass(frozen=True)
class Case:
    """An operation at one shape.

    Attributes:
        name: what and how large.
        prepare: makes its tensors and returns the work to record.
        floor: bytes of each input once and each output once.
        peft: bytes of PEFT's sequence of operations for the same.
        granule: bytes of a granule of the cache model.
        finish: completes what was recorded.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    floor: int
    peft: int
    granule: int = _GRANULE
    finish: Callable[[Trace], None] | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table; bytes, and their ratios to the floor."""

    case: str
    floor: int
    requested: int
    dram: int
    peft: int
    dram_to_floor: float
    peft_to_floor: float


def measure(case: Case, gpu: Gpu = H100) -> Row:
    """Run a case in the interpreter and count."""
    work = case.prepare()
    with record_accesses(case.granule) as trace:
        work()
    if case.finish is not None:
        case.finish(trace)
    dram = count_dram_bytes(trace, gpu)
    return Row(
        case=case.name,
        floor=case.floor,
        requested=trace.requested,
        dram=dram,
        peft=case.peft,
        dram_to_floor=round(dram / case.floor, 3),
        peft_to_floor=round(case.peft / case.floor, 3),
    )


def traffic_cases(shape: ModelShape, tokens: int) -> Iterator[Case]:
    """The operations of the inner loop for one document."""
    for rank in (16, 256):
        for inputs, outputs in shape.linears:
            yield from _linear_cases(tokens, inputs, outputs, rank)
    yield from _update_cases(shape, 16)
    yield _head_case(shape, tokens, shape.vocabulary)


def _linear_cases(tokens: int, inputs: int, outputs: int, rank: int) -> Iterator[Case]:
    """Forward, and backward into the flat float32 gradient."""
    size = f"{inputs}x{outputs} rank {rank}"
    half, single = 2, 4
    x, w, y = tokens * inputs, inputs * outputs, tokens * outputs
    a, b, low = rank * inputs, rank * outputs, tokens * rank

    def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sizes = ((1, tokens, inputs), (outputs, inputs), (1, rank, inputs), (1, outputs, rank))
        return tuple(torch.zeros(size, dtype=torch.bfloat16) for size in sizes)  # type: ignore[return-value]

    def forward() -> Callable[[], object]:
        x_, weight, down, up = tensors()
        return torch.no_grad()(partial(lora_linear, x_, weight, None, down, up, 1.0))

    def backward() -> Callable[[], object]:
        x_, weight, down, up = tensors()
        into = torch.zeros(1, rank, inputs), torch.zeros(1, outputs, rank)
        learned = [tensor.requires_grad_() for tensor in (x_, down, up)]
        y_ = lora_linear(x_, weight, None, down, up, 1.0, gradients=into)
        return partial(torch.autograd.grad, y_, learned, torch.zeros_like(y_), allow_unused=True)

    yield Case(
        f"lora_linear {size}",
        forward,
        floor=half * (x + w + a + b + y),
        # x Wᵀ, x Aᵀ, (x Aᵀ) Bᵀ, times s, sum.
        peft=half * ((x + w + y) + (x + a + low) + (low + b + y) + 2 * y + 3 * y),
        granule=_NARROW_GRANULE,
    )
    yield Case(
        f"lora_linear backward {size}",
        backward,
        floor=half * (y + w + x + low + a + b + x) + 2 * single * (a + b),
        # s dy, dB, dy B, dA, (dy B) A, dy W, sum; and both gradients added to float32 ones.
        peft=half * (2 * y + (y + low + b) + (y + b + low) + (low + x + a) + (low + a + x) + (y + w + x) + 3 * x)
        + (half + 2 * single) * (a + b),
        granule=_NARROW_GRANULE,
    )


def adapter_sizes(shape: ModelShape, rank: int) -> list[int]:
    """Elements of each tensor of an adapter on all linear maps of all layers, in their order in the flat buffer."""
    h, kv, m = shape.hidden, shape.key_value, shape.intermediate
    widths = [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]
    return [rank * width for pair in widths for width in pair] * shape.layers


def _update_cases(shape: ModelShape, rank: int) -> Iterator[Case]:
    """Both rules over the buffer of all layers."""
    sizes = adapter_sizes(shape, rank)
    count = sum(sizes)
    theta, gradient, first, second = (torch.zeros(1, count) for _ in range(4))
    rates = torch.ones(len(sizes))
    yield Case(
        f"adamw_update rank {rank}",
        lambda: partial(
            adamw_update,
            theta,
            gradient,
            (first, second),
            rates,
            sizes,
            1,
            betas=(0.9, 0.95),
            weight_decay=0.01,
            epsilon=1e-8,
        ),
        floor=4 * 7 * count,
        # torch.optim.AdamW (foreach): decay, lerp, two on v, root, division, epsilon, addcdiv.
        peft=4 * (2 + 3 + 2 + 3 + 2 + 2 + 2 + 4) * count,
    )
    yield Case(
        f"rms_update rank {rank}",
        lambda: partial(rms_update, theta, gradient, rates, sizes, epsilon=1e-8),
        floor=4 * 3 * count,
        # Square, mean, division, and the step.
        peft=4 * (2 + 1 + 2 + 3) * count,
    )


def _head_case(shape: ModelShape, tokens: int, vocabulary: int) -> Case:
    """Loss and gradient to the hidden states.

    Every block of the vocabulary but a program's first is read as its second is, further on in the head. So the blocks
    from the third on are written down and not interpreted: `_RECORDED` of each program are.
    """
    hidden = torch.zeros(1, tokens, shape.hidden, dtype=torch.bfloat16, requires_grad=True)
    plan = make_plan(hidden[0], hidden.new_empty(vocabulary, shape.hidden, device="meta"), tangents=False)
    rows = plan.blocks.vocabulary
    # With a block of rows on either side, so that no granule has a part of the head and one of another tensor.
    room = torch.zeros(vocabulary + 2 * rows, shape.hidden, dtype=torch.bfloat16)
    head = room[rows:-rows]
    targets = torch.zeros(1, tokens, dtype=torch.int64)
    weights = torch.ones(1, tokens, dtype=torch.bfloat16)
    x, w, logits = tokens * shape.hidden, head.numel(), tokens * vocabulary
    block_bytes = rows * shape.hidden * head.itemsize
    part = head[: plan.shares * _RECORDED * rows]
    return Case(
        f"weighted_cross_entropy {shape.hidden}x{vocabulary}",
        lambda: partial(weighted_cross_entropy, hidden, part, targets, weights),
        floor=2 * (2 * x + w) + 12 * tokens,
        # Logits, to float32, log-softmax, its gradient, to bfloat16, and the product with W.
        peft=2 * (x + w + logits) + 6 * logits + 8 * logits + 12 * logits + 6 * logits + 2 * (logits + w + x),
        granule=_WIDE_GRANULE,
        finish=partial(_extend, head=part, block_bytes=block_bytes, shares=plan.shares, blocks=plan.columns),
    )


def _extend(trace: Trace, head: Tensor, block_bytes: int, shares: int, blocks: int) -> None:
    """Lengthen the programs of the first launch from `_RECORDED` blocks of the head to `blocks`."""
    launch, granule = trace.launches[0], trace.granule
    low, high = head.data_ptr() // granule, (head.data_ptr() + head.nbytes - 1) // granule
    step = block_bytes // granule
    moved: dict[tuple[int, int, int], Access] = {}
    for number, program in enumerate(launch):
        share = number * shares // len(launch)
        # Before the first product: counts and targets. After the last: maximum, sum, and the target's logit.
        before = next(i for i, access in enumerate(program) if low <= access.granules[0] <= high) - 1
        length, rest = divmod(len(program) - before - 3, _RECORDED)
        if rest:
            raise RuntimeError(f"{len(program)} accesses are not {_RECORDED} blocks of one length")
        second = program[before + length : before + 2 * length]
        longer = program[:before]
        for block in range(blocks):
            # The shares lie further apart than they were recorded.
            source = program[before : before + length] if block == 0 else second
            shift = (share * (blocks - _RECORDED) + block - min(block, 1)) * step
            for place, access in enumerate(source):
                # Sums that are not begun are masked, and touch nothing.
                if access.granules and low <= access.granules[0] <= high:
                    key = (share, block, place)
                    if key not in moved:
                        moved[key] = replace(access, granules=tuple(g + shift for g in access.granules))
                    access = moved[key]
                longer.append(access)
        launch[number] = longer + program[-3:]


def main() -> int:
    """The command line; returns the exit status: 1 if a case moves more than 1.15 of its floor."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description="Count bytes of Triton kernels.")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the document")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--csv", type=Path, help="write the table here")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    arguments = parser.parse_args()
    os.environ["PERK_KERNELS"] = "triton"
    rows = []
    for case in traffic_cases(MODEL_SHAPES["Qwen2.5-0.5B"], arguments.tokens):
        if arguments.cases not in case.name:
            continue
        row = measure(case)
        rows.append(row)
        if arguments.csv:
            # After each: counting all takes long, and what has been counted shall not be lost.
            write_rows(arguments.csv, rows)
        print(json.dumps(asdict(row)) if arguments.json else "  ".join(map(str, asdict(row).values())), flush=True)
    return int(any(row.dram_to_floor > 1.15 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
