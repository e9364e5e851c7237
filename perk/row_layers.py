"""The layers of a Llama or Qwen2 base when a CPU decodes R rows, each with a cache, positions and adapter of its own.

A step reads all weights for a handful of tokens: it takes as long as memory takes to hand them over, if little comes on
top. The modules put as much on top again, in some thousand small operations and calls. Here a layer's maps that share
an input are one product, and nothing is called that does not compute.

No operation mixes rows, and each sums a row in the same order whatever their number (`perk.packed_linear`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from kernels.decoder_layer import DecoderLayer
from kernels.merged_projections import Adapter, FrozenProjections
from kernels.sequences import Rotation
from perk.adapter_layout import AdapterLayout
from perk.layer_adapters import LayerAdapters
from perk.merged_layers import rotation_at
from perk.packed_linear import PackedLinear
from perk.row_cache import RowCaches, attend

if TYPE_CHECKING:
    from perk.base_model import BaseModel

__all__ = ["RowLayers"]


class RowLayers:
    """All layers, their weights laid out for few rows: as much memory as they take."""

    def __init__(
        self,
        base: BaseModel,
        layers: Sequence[DecoderLayer],
        paths: Sequence[str],
        layout: AdapterLayout,
        scale: float,
    ) -> None:
        """Lay the weights out, which takes a moment.

        Args:
            base: the model.
            layers: all of its layers, without adapters.
            paths: where each of them is in the model.
            layout: of an adapter.
            scale: factor s of the low-rank term.
        """
        self._embed: Any = base.model.get_input_embeddings()
        self._rotary: Any = base.backbone.get_submodule("rotary_emb")
        self._layers = list(layers)
        self._maps = [
            [_RowMaps(maps, scale) for maps in layer.projections if isinstance(maps, FrozenProjections)]
            for layer in layers
        ]
        self._layout = layout
        self._adapters = LayerAdapters(layout, paths)

    def run(self, ids: Tensor, caches: RowCaches, positions: Tensor, adapters: Sequence[Tensor | None]) -> Tensor:
        """Output of the last layer, under `torch.inference_mode`.

        Args:
            ids: T tokens of each row, ``[R, T]``.
            caches: what the rows read before; these tokens are added.
            positions: of the tokens, ``[R, T]``.
            adapters: of each row, ``[P]``; None: it has none. Where the same tensor is that of neighbours, it is read
                once for all of them.

        Returns:
            ``[R, T, H]``.
        """
        states: Tensor = self._embed(ids)
        rotation = rotation_at(self._rotary, states, positions)
        shared = [
            (rows, list(self._adapters.sort(self._layout.views(theta.to(states).expand(rows.stop - rows.start, -1)))))
            for rows, theta in _neighbours(adapters)
        ]
        for index, (layer, maps) in enumerate(zip(self._layers, self._maps, strict=True)):
            qkv, out, gate_up, down = maps
            own = [[(rows, layers[index][group]) for rows, layers in shared] for group in range(len(maps))]
            normal = _normalise(states, layer.norms[0], layer.epsilon)
            attended = _attend(qkv(normal, own[0]), layer, rotation, caches, index)
            states = out(attended, own[1]).add_(states)
            normal = _normalise(states, layer.norms[1], layer.epsilon)
            gate, up = gate_up(normal, own[2]).chunk(2, dim=-1)
            states = down(functional.silu(gate).mul_(up), own[3]).add_(states)
        return states


class _RowMaps:
    """Maps that share their input: one product for all of them, and each row's low-rank terms."""

    def __init__(self, maps: FrozenProjections, scale: float) -> None:
        self._packed = PackedLinear(torch.cat(maps.weights), maps.bias)
        self._widths = maps.widths
        self._scale = scale

    def __call__(self, x: Tensor, adapters: Sequence[tuple[slice, Sequence[Adapter]]]) -> Tensor:
        """``[R, T, in]`` to ``[R, T, Σ out_i]``, under A ``[n, r, in]`` and B ``[n, out_i, r]`` of n rows at a time."""
        y = self._packed(x)
        parts = y.split(self._widths, dim=-1)
        for rows, own in adapters:
            for part, adapter in zip(parts, own, strict=True):
                if adapter is not None:
                    a, b = adapter
                    part[rows].baddbmm_(torch.bmm(x[rows], a.mT), b.mT, alpha=self._scale)
        return y


def _neighbours(adapters: Sequence[Tensor | None]) -> Iterator[tuple[slice, Tensor]]:
    """Rows that stand side by side under the same adapter ``[P]``, and that; those without one are left out."""
    start = 0
    for _, same in groupby(adapters, key=id):
        own = list(same)
        if own[0] is not None:
            yield slice(start, start + len(own)), own[0]
        start += len(own)


def _normalise(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(states, weight.shape, weight, epsilon)


def _attend(qkv: Tensor, layer: DecoderLayer, rotation: Rotation, caches: RowCaches, index: int) -> Tensor:
    """Attention from the joint projection ``[R, T, Σ]``, joined over the heads."""
    rows, length, _ = qkv.shape
    turned = layer.heads + layer.key_value_heads
    every = qkv.view(rows, length, turned + layer.key_value_heads, layer.head)
    rotated = rotation.apply(every[:, :, :turned], qkv.new_empty(rows, length, turned, layer.head)).transpose(1, 2)
    keys, values = caches.update(rotated[:, layer.heads :], every[:, :, turned:].transpose(1, 2), index)
    return attend(rotated[:, : layer.heads], keys, values).reshape(rows, length, -1)
