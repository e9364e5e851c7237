"""The layers of a Llama or Qwen2 base on a CPU, run by `kernels.decoder_layer` instead of their own modules.

Used where that is exact to rounding: passes without an adapter, and the first-order passes of encoding one document,
whose adapter is merged into a copy of the weights once a step. Everything else (several documents at once, derivatives
of derivatives, GPT-2, other dtypes, GPUs, Triton) goes through the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernels.decoder_layer import LAYER_MAPS, DecoderLayer, LayerGradients, LayerState
from kernels.dispatch import use_triton
from kernels.merged_projections import FrozenProjections, MergedProjections
from kernels.product_dtype import padded_rows
from kernels.sequences import Rotation, Sequences
from kernels.workspace import Workspace
from perk.adapter_layout import AdapterLayout
from perk.layer_adapters import LayerAdapters, module_name

if TYPE_CHECKING:
    from perk.base_model import BaseModel

__all__ = ["FrozenLayers", "MergedLayers", "can_run", "rotation_at"]

# Values of ``model_type`` in a base's configuration.
_FAMILIES = ("llama", "qwen2")


def can_run(base: BaseModel) -> bool:
    """Whether a base's layers are those of `kernels.decoder_layer`, in float32 on a CPU."""
    config = base.model.config
    plain = set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
    known = config.model_type in _FAMILIES and config.hidden_act == "silu" and plain
    on_cpu = base.device.type == "cpu" and base.dtype == torch.float32
    return known and on_cpu and not use_triton(base.head)


class _Workspaces:
    """Memory for the passes through some layers, one at a time, of whatever document; it stays for the next one.

    Attributes:
        scratch: for the layer at hand.
        passing: for the states between two layers.
        kept: for what a pass keeps for its way back.
        passes: how many have begun to use `kept`.
    """

    def __init__(self) -> None:
        self.scratch, self.kept = Workspace(), Workspace()
        self.passing = (Workspace(), Workspace())
        self.passes = 0


class FrozenLayers:
    """Some consecutive layers of a base whose linear modules are wrapped, without adapters."""

    def __init__(self, base: BaseModel, layers: Sequence[nn.Module]) -> None:
        """Take the layers' weights; they are not copied."""
        self._rotary: Any = base.backbone.get_submodule("rotary_emb")
        self._layers = [_frozen_layer(base, layer) for layer in layers]
        self.workspaces = _Workspaces()

    @property
    def layers(self) -> list[DecoderLayer]:
        """In order."""
        return self._layers

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all linear maps."""
        maps = (maps for layer in self._layers for maps in layer.projections if isinstance(maps, FrozenProjections))
        return sum(weight.nbytes for group in maps for weight in group.weights)

    @property
    def kept_numbers(self) -> int:
        """Numbers that all layers together keep of a token for the backward pass."""
        return sum(layer.kept_numbers for layer in self._layers)

    @property
    def passing_numbers(self) -> int:
        """Numbers of a token that a layer has in hand at most, besides."""
        return max(layer.kept_numbers for layer in self._layers)

    @torch.no_grad()
    def run(self, states: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Output of the last layer for the input of the first, both ``[S, T, H]``; for `lengths` see `sequences`."""
        sequences = self.sequences(states, lengths)
        flat = states.reshape(-1, states.shape[-1])
        last = torch.empty_like(flat)
        spaces = self.workspaces
        for number, layer in enumerate(self._layers, start=1):
            # States pass from layer to layer through either of two places in turn.
            passing = spaces.passing[number % 2]
            passing.reset()
            into = last if number == len(self._layers) else passing.take(*flat.shape, dtype=flat.dtype)
            layer.forward(flat, sequences, into, spaces.scratch, kept=None)
            spaces.scratch.reset()
            flat = into
        return flat.view_as(states)

    def sequences(self, states: Tensor, lengths: Sequence[int] | None) -> list[Sequences]:
        """Where the sequences of states ``[S, T, H]`` lie among their ``S·T`` rows.

        With `lengths`, the only sequence is many of those lengths, one behind another. Each begins at position 0.
        """
        rows, width = states.shape[:2]
        lengths = [width] * rows if lengths is None else lengths
        longest = rotation_at(self._rotary, states, torch.arange(max(lengths))[None])
        found: list[Sequences] = []
        for length, same in groupby(lengths):
            start = found[-1].stop if found else 0
            found.append(Sequences(start, len(list(same)), longest.first(length)))
        return found


def rotation_at(rotary: Any, states: Tensor, positions: Tensor) -> Rotation:
    """What a base's rotary embedding does to states ``[S, T, H]`` at positions ``[S, T]``, or ``[1, T]`` of all."""
    cos, sin = rotary(states, position_ids=positions)
    half = cos.shape[-1] // 2
    return Rotation(cos[:, :, None, :half].contiguous(), sin[:, :, None, :half].contiguous())


@dataclass(frozen=True)
class Pass:
    """A pass through merged layers, until the next one begins.

    Attributes:
        number: of the pass, from 1.
        kept: what each layer kept for the way back.
        sequences: of its tokens.
    """

    number: int
    kept: list[LayerState]
    sequences: list[Sequences]


class MergedLayers:
    """The adapted layers with one document's adapter merged into a copy of their weights.

    Attributes:
        dtype: type of that copy, and of the products with it.
    """

    def __init__(
        self, frozen: FrozenLayers, paths: Sequence[str], layout: AdapterLayout, scale: float, dtype: torch.dtype
    ) -> None:
        """Reserve the merged weights; `merge` fills them.

        Args:
            frozen: the adapted layers.
            paths: where each of them is in the model, such as ``model.layers.20``.
            layout: of an adapter.
            scale: factor of the low-rank term.
            dtype: type of the products.
        """
        self.dtype = dtype
        self._frozen = frozen
        self._layout = layout
        self._spaces = frozen.workspaces
        self._merged = [
            tuple(
                MergedProjections(maps, scale, dtype)
                for maps in layer.projections
                if isinstance(maps, FrozenProjections)
            )
            for layer in frozen.layers
        ]
        self._adapters = LayerAdapters(layout, paths)
        self._layers = [
            DecoderLayer(merged, layer.norms, layer.epsilon, layer.heads, layer.key_value_heads, layer.head)
            for layer, merged in zip(frozen.layers, self._merged, strict=True)
        ]

    @torch.no_grad()
    def merge(self, theta: Tensor) -> None:
        """Take the adapter ``[1, P]`` from now on."""
        for layer, adapters in zip(self._merged, self._group(theta), strict=True):
            for maps, group in zip(layer, adapters, strict=True):
                maps.merge(group, self._spaces.scratch)
            self._spaces.scratch.reset()

    def run(self, states: Tensor, theta: Tensor, gradient: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Output of the last layer, ``[S, T, H]``, for the input of the first.

        For `lengths` see `FrozenLayers.sequences`.
        The backward pass adds the adapter's gradient to `gradient` ``[1, P]``; it hands none on to `theta`, which only
        tells autograd that there is one to be made. It must come before the next pass, which takes over the memory.
        """
        last: Tensor = _Run.apply(theta, states, self, gradient, lengths)  # type: ignore[no-untyped-call]
        return last

    def forward(self, states: Tensor, lengths: Sequence[int] | None = None) -> tuple[Tensor, Pass]:
        """`run` without autograd, and what `backward` needs."""
        spaces = self._spaces
        spaces.passes += 1
        spaces.kept.reset()
        sequences = self._frozen.sequences(states, lengths)
        tokens = sequences[-1].stop
        flat = states.reshape(-1, states.shape[-1])
        # Products of ever new shapes would each have code of their own.
        flat = spaces.kept.cast(flat, flat.dtype, rows=padded_rows(tokens, self.dtype))
        kept = []
        for layer in self._layers:
            into = spaces.kept.take(*flat.shape, dtype=flat.dtype)
            state = layer.forward(flat, sequences, into, spaces.scratch, spaces.kept)
            spaces.scratch.reset()
            assert state is not None
            kept.append(state)
            flat = into
        # Under a version counter of its own, as the workspace is written to before autograd comes back to it.
        return flat[:tokens].view_as(states).data, Pass(spaces.passes, kept, sequences)

    def backward(self, slope: Tensor, made: Pass, gradient: Tensor) -> None:
        """Add the adapter's gradient, given that of the output ``[S, T, H]``.

        Raises:
            RuntimeError: another pass has taken the place of what this one kept.
        """
        spaces = self._spaces
        if made.number != spaces.passes:
            raise RuntimeError("gradient: another pass through these layers has begun since, and overwrote this one")
        own = slope.reshape(-1, slope.shape[-1])
        flat: Tensor | None = spaces.kept.copy(own, own.dtype, rows=padded_rows(len(own), self.dtype))
        gradients = list(self._group(gradient))
        for index in reversed(range(len(self._layers))):
            assert flat is not None
            # What stands before the first adapter depends on none: the gradient ends there.
            last = self._adapters.first_group if index == 0 else None
            state = made.kept.pop()
            flat = self._layers[index].backward(
                flat, state, made.sequences, gradients[index], spaces.scratch, last=last
            )
            spaces.scratch.reset()

    def _group(self, theta: Tensor) -> Iterator[LayerGradients]:
        """Tensors of an adapter ``[1, P]`` by layer and group of maps."""
        return self._adapters.sort([(a[0], b[0]) for a, b in self._layout.views(theta)])


class _Run(torch.autograd.Function):
    """All layers as one step of autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        theta: Tensor,
        states: Tensor,
        layers: MergedLayers,
        gradient: Tensor,
        lengths: Sequence[int] | None,
    ) -> Tensor:
        # The output is no attribute of the context: it refers to it, and only a garbage collector would free such a
        # circle, with all the weights in it.
        last, ctx.made = layers.forward(states, lengths)
        ctx.layers, ctx.gradient = layers, gradient
        return last

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("gradient: a pass that adds to a buffer cannot be differentiated again")
        ctx.layers.backward(upstream[0], ctx.made, ctx.gradient)
        return None, None, None, None, None


def _frozen_layer(base: BaseModel, layer: nn.Module) -> DecoderLayer:
    config = base.model.config
    projections = []
    for names in LAYER_MAPS:
        linears: list[Any] = [layer.get_submodule(module_name(name)) for name in names]
        projections.append(
            FrozenProjections([linear.weight for linear in linears], [linear.frozen.bias for linear in linears])
        )
    norms = (layer.get_submodule("input_layernorm"), layer.get_submodule("post_attention_layernorm"))
    first, second = (norm.get_parameter("weight") for norm in norms)
    heads = int(config.num_attention_heads)
    return DecoderLayer(
        projections=tuple(projections),
        norms=(first, second),
        epsilon=float(config.rms_norm_eps),
        heads=heads,
        key_value_heads=int(config.num_key_value_heads),
        head=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )
