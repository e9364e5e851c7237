"""Floating-point operations: those that an encoding needs, and those that this machine does in a second.

An [m, k] by [k, n] matrix product is 2·m·k·n operations. Only matrix products and attention count; norms, activations,
softmax and the update rule do not, though they take time. Padding counts: it is computed. Rows that fill a micro-batch
up for products in bfloat16 (`kernels.product_dtype`) do not: only the library that makes the products asks for them.

For M tokens in R rows of length T, a layer with frozen weights of E elements in all, and adapters of rank r:
    frozen forward        2·M·E
    adapter forward       2·M·r·(in + out) for each adapted linear
    causal attention      4·R·H·T·(T + 1)/2 for scores and values
    frozen backward       2·M·E, the gradient of the input alone; nothing where the input depends on no adapter
    adapter backward      2·M·r·(in + 2·out) for A and B, and 2·M·r·in for the input
    attention backward    2.5 times its forward: five products for two, as the scores are made again
and for K tokens of loss among C rows of the LM head 2·K·H·C for the logits, the same again for their gradient.

Where the adapter is merged into the weights once a step (`kernels.merged_projections`), that is
    merging               2·r·in·out once a step, whatever M
    adapter forward       nothing
    adapter backward      4·M·r·(in + out) for A and B, nothing for the input
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from perk.batches import MicroBatch
from perk.lora import AdaptedModel
from perk.token_weights import TokenWeighting

__all__ = ["EncodingFlops", "count_encoding_flops", "measure_product_rate"]

_PRODUCT_SIZE = 2048
_PRODUCT_REPEATS = 3

# Linears of a layer by depth: each reads what those of a smaller depth have written.
_DEPTHS = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 0,
    "self_attn.v_proj": 0,
    "attn.c_attn": 0,
    "self_attn.o_proj": 1,
    "attn.c_proj": 1,
    "mlp.gate_proj": 2,
    "mlp.up_proj": 2,
    "mlp.c_fc": 2,
    "mlp.down_proj": 3,
    "mlp.c_proj": 3,
}


@dataclass(frozen=True)
class EncodingFlops:
    """Operations of an encoding, by kind.

    Attributes:
        products: matrix products of linears, adapters, token weighting and LM head.
        attention: scores and values, forward and backward.
    """

    products: int
    attention: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.products + self.attention


@dataclass(frozen=True)
class _Linear:
    inputs: int
    outputs: int
    rank: int
    depth: int

    def forward(self, tokens: int) -> int:
        return 2 * tokens * (self.inputs * self.outputs + self.rank * (self.inputs + self.outputs))

    def frozen(self, tokens: int) -> int:
        return 2 * tokens * self.inputs * self.outputs

    def merging(self) -> int:
        return 2 * self.rank * self.inputs * self.outputs

    def merged_backward(self, tokens: int, *, to_input: bool) -> int:
        adapter = 4 * tokens * self.rank * (self.inputs + self.outputs)
        return adapter + (self.frozen(tokens) if to_input else 0)

    def backward(self, tokens: int, *, to_input: bool) -> int:
        adapter = 2 * tokens * self.rank * (self.inputs + 2 * self.outputs)
        onward = 2 * tokens * self.inputs * (self.outputs + self.rank)
        return adapter + (onward if to_input else 0)


def count_encoding_flops(
    adapted: AdaptedModel,
    weighting: TokenWeighting | None,
    batches: Sequence[MicroBatch],
    *,
    steps: int,
    candidates: int,
    merged: bool,
) -> EncodingFlops:
    """What an encoding with kept lower states computes: lower layers once, weights once, upper layers in every step.

    Args:
        adapted: the model.
        weighting: weight of each token, or None.
        batches: micro-batches of one document.
        steps: N, each of which reads them all.
        candidates: rows C of the LM head that compete.
        merged: the adapter is merged into the weights once a step.
    """
    lower = [_linears(layer, adapted, index) for index, layer in enumerate(_layers(adapted.lower))]
    first = adapted.settings.first_layer
    upper = [_linears(layer, adapted, first + index) for index, layer in enumerate(_layers(adapted.upper))]
    hidden = adapted.base.head.shape[1]
    adapted_depths = [linear.depth for linear in upper[0] if linear.rank]
    products = steps * sum(linear.merging() for layer in upper for linear in layer) if merged else 0
    attention = 0
    forward = _Linear.frozen if merged else _Linear.forward
    backward = _Linear.merged_backward if merged else _Linear.backward
    for batch in batches:
        tokens, loss_tokens = batch.ids.numel(), batch.targets.numel()
        look = 2 * _attention_width(adapted) * sum(length * (length + 1) for length in batch.row_lengths)

        once = sum(linear.frozen(tokens) for layer in lower for linear in layer)
        attention += len(lower) * look
        if weighting is not None:
            once += sum(linear.frozen(tokens) for layer in upper for linear in layer)
            once += (
                2 * loss_tokens * sum(parameter.numel() for parameter in weighting.parameters() if parameter.ndim == 2)
            )
            attention += len(upper) * look

        each = sum(forward(linear, tokens) for layer in upper for linear in layer)
        # The first adapted layer's input depends on no adapter: no gradient goes where only that is read.
        each += sum(backward(linear, tokens, to_input=linear.depth > min(adapted_depths)) for linear in upper[0])
        each += sum(backward(linear, tokens, to_input=True) for layer in upper[1:] for linear in layer)
        each += 2 * 2 * loss_tokens * hidden * candidates
        differentiated = len(upper) - (min(adapted_depths) > 0)
        attention += steps * (len(upper) * look + differentiated * look * 5 // 2)
        products += once + steps * each
    return EncodingFlops(products, attention)


def measure_product_rate(dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a large matrix product of that type on the CPU, the best of several."""
    left, right = torch.rand(2, _PRODUCT_SIZE, _PRODUCT_SIZE).to(dtype)
    out = torch.empty_like(left)
    best = float("inf")
    for _ in range(_PRODUCT_REPEATS):
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * _PRODUCT_SIZE**3 / best


def _layers(part: nn.Module) -> nn.ModuleList:
    """The decoder layers of a backbone or of one half of it."""
    return next(child for child in part.children() if isinstance(child, nn.ModuleList))


def _linears(layer: nn.Module, adapted: AdaptedModel, index: int) -> list[_Linear]:
    found = []
    for path, module in layer.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        name = path.removesuffix(".frozen")
        weight = module.weight
        inputs, outputs = weight.shape if isinstance(module, Conv1D) else reversed(weight.shape)
        has_adapter = any(path.endswith(f".{index}.{name}") for path in adapted.layout.modules)
        found.append(_Linear(inputs, outputs, adapted.settings.rank if has_adapter else 0, _DEPTHS[name]))
    return found


def _attention_width(adapted: AdaptedModel) -> int:
    """Heads times the width of a head."""
    config = adapted.base.model.config
    heads = int(config.num_attention_heads)
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
