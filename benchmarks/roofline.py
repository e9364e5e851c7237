"""Predicted times of the inner loop on an H100, from bytes and operations alone; nothing here is measured.

    python -m benchmarks.roofline

Each operation takes the longer of its DRAM bytes at the memory's rate and its operations at the tensor cores' rate,
both at the efficiencies below. Attention, norms and launches are not in it: it is a floor of what our operations take.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from kernels.model_shapes import MODEL_SHAPES, ModelShape

__all__ = ["Cost", "inner_loop_costs", "table"]

# NVIDIA's data sheet of the H100 SXM: HBM3, bfloat16 dense.
_BYTES_PER_SECOND = 3.35e12
_FLOPS = 989e12
# Assumed, not measured: a large stream, a large product, and the head's kernel, whose sums pass through the L2 cache.
_MEMORY_EFFICIENCY = 0.85
_PRODUCT_EFFICIENCY = 0.60
_HEAD_EFFICIENCY = 0.20


@dataclass(frozen=True)
class Cost:
    """One kind of operation over one inner step.

    Attributes:
        name: of the operation.
        bytes: that DRAM must move at least.
        flops: operations of its products.
        efficiency: share of the tensor cores' rate that is assumed.
    """

    name: str
    bytes: int
    flops: int
    efficiency: float = _PRODUCT_EFFICIENCY

    @property
    def seconds(self) -> float:
        """The longer of memory and arithmetic."""
        memory = self.bytes / (_BYTES_PER_SECOND * _MEMORY_EFFICIENCY)
        return max(memory, self.flops / (_FLOPS * self.efficiency))


def inner_loop_costs(shape: ModelShape, tokens: int, rank: int, micro_batch: int = 8192) -> list[Cost]:
    """Operations of one inner step over all tokens, in bfloat16, adapters and gradients in float32 beside it."""
    h, kv, m = shape.hidden, shape.key_value, shape.intermediate
    maps = [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]
    batches = -(-tokens // micro_batch)
    forward = backward = forward_flops = backward_flops = adapter = 0
    for inputs, outputs in maps:
        frozen, low = inputs * outputs, rank * (inputs + outputs)
        adapter += low
        # x, y and the low-rank product of every token; weights and adapters once a micro-batch.
        forward += 2 * (tokens * (inputs + outputs + rank) + batches * (frozen + low))
        backward += 2 * (tokens * (outputs + 2 * inputs + rank) + batches * (frozen + low)) + 8 * batches * low
        forward_flops += 2 * tokens * (frozen + low)
        # dx as the forward pass, and the sums over tokens.
        backward_flops += 2 * tokens * (frozen + 2 * low)
    count = shape.layers * adapter
    head = shape.vocabulary * h
    return [
        Cost("lora_linear", shape.layers * forward, shape.layers * forward_flops),
        Cost("lora_linear, backward", shape.layers * backward, shape.layers * backward_flops),
        Cost(
            "weighted_cross_entropy",
            2 * (2 * tokens * h + batches * head),
            4 * tokens * head,
            _HEAD_EFFICIENCY,
        ),
        Cost("adapter_update (AdamW)", 4 * 7 * count, 0),
    ]


def table(model: str, tokens: int, rank: int, steps: int = 4) -> str:
    """The costs as a Markdown table."""
    lines = [
        f"{model}, {tokens:,} tokens, rank {rank}, {steps} steps:",
        "",
        "| operation | DRAM, GB | TFLOP | bound by | predicted, s |",
        "|---|---|---|---|---|",
    ]
    total = 0.0
    for cost in inner_loop_costs(MODEL_SHAPES[model], tokens, rank):
        seconds = steps * cost.seconds
        total += seconds
        memory = cost.bytes / (_BYTES_PER_SECOND * _MEMORY_EFFICIENCY)
        bound = "memory" if cost.seconds == memory else "arithmetic"
        moved, computed = steps * cost.bytes / 1e9, steps * cost.flops / 1e12
        lines.append(f"| {cost.name} | {moved:.1f} | {computed:.1f} | {bound} | {seconds:.3f} |")
    return "\n".join([*lines, f"| together | | | | {total:.3f} |"])


def main() -> None:
    """Print the tables of docs/kernels.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description="Predict times on an H100.")
    parser.add_argument("--model", choices=list(MODEL_SHAPES), default="Qwen2.5-0.5B")
    arguments = parser.parse_args()
    print("\n\n".join(table(arguments.model, tokens, rank) for tokens in (8192, 131072) for rank in (16, 256)))


if __name__ == "__main__":
    main()
