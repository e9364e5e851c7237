"""A decoder layer of the Llama family, forward, and backward to its input and one document's adapters; for CPUs.

h' = h + O(attention(rotate Q(n₁ h), rotate K(n₁ h), V(n₁ h)));  h'' = h' + D(silu(G(n₂ h')) ∘ U(n₂ h')), where n scales
to unit root mean square and by a weight, and Q … D are `kernels.merged_projections`. Against the same layer out of
modules under autograd: half as many large products, two thirds of the low-rank ones, residual sums inside the products,
buffers written in place and used again, and an eighth of the numbers kept for the backward pass. Once differentiable.

Products may be of a narrower type than the rest (`kernels.product_dtype`): what goes into one is cast to it, and what
comes out is cast back, but for what goes from one into the next with a single operation between, which stays narrow.
Sequences of whatever lengths lie one behind another, without padding: only attention tells them apart. States may have
more rows than there are tokens, so that products of different micro-batches have the same shape: such rows take part in
everything but attention, and their gradients are zeros where that of the output is.

Numbers kept a token: 4·H + 2·(heads + key-value heads)·head + 3·I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from kernels.merged_projections import Adapter, FrozenProjections, MergedProjections
from kernels.sequences import Sequences
from kernels.workspace import Workspace

__all__ = ["LAYER_MAPS", "DecoderLayer", "LayerGradients", "LayerState"]

# How the linear maps of a layer are grouped: those of a group share their input.
LAYER_MAPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))

# Adapter of each map, in the groups of LAYER_MAPS; for gradients, the buffers they are added to.
LayerGradients = tuple[tuple[Adapter, ...], ...]

_Projections = FrozenProjections | MergedProjections


# Rotated queries and keys, and values, ``[S, heads, T, head]`` each.
_Heads = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Normal:
    """States ``[N, H]`` at unit root mean square, times a weight ``[H]``; the inverses ``[N, 1]`` made them so."""

    values: Tensor
    inverses: Tensor

    @classmethod
    def of(
        cls, states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype, space: Workspace, scratch: Workspace
    ) -> Normal:
        """Normalise, to values of that type in `space`."""
        squares = torch.linalg.vector_norm(states, dim=1, keepdim=True).square_()
        inverses = squares.div_(states.shape[1]).add_(epsilon).rsqrt_()
        work = space if dtype == states.dtype else scratch
        values = torch.mul(states, inverses, out=work.take(*states.shape, dtype=states.dtype)).mul_(weight)
        return cls(space.cast(values, dtype), inverses)

    def add_slope(self, into: Tensor, upstream: Tensor, states: Tensor, weight: Tensor) -> None:
        """Add the gradient of the states to `into`, given that of the values; `upstream` is overwritten."""
        mean = torch.linalg.vecdot(upstream.mul_(weight), states)[:, None].div_(states.shape[1])
        upstream.addcmul_(states, mean.mul_(self.inverses.square()), value=-1)
        into.addcmul_(upstream, self.inverses)


@dataclass(frozen=True)
class LayerState:
    """What a forward pass keeps for the backward one.

    Attributes:
        states: input h, ``[N, H]``.
        middle: h', ``[N, H]``.
        normals: n₁ h and n₂ h'.
        heads: of sequences of each length; leaves of the graph of `attended`.
        attended: output of attention, ``[S, heads, T, head]`` each.
        product: silu(gate) ∘ up, ``[N, I]``.
        slopes: of the product along gate, and along up, ``[N, I]`` each.
    """

    states: Tensor
    middle: Tensor
    normals: tuple[Normal, Normal]
    heads: list[_Heads]
    attended: list[Tensor]
    product: Tensor
    slopes: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DecoderLayer:
    """Weights and sizes of a layer.

    Attributes:
        projections: maps of each group of `LAYER_MAPS`.
        norms: weights of both norms, ``[H]``.
        epsilon: added to the mean square.
        heads: query heads.
        key_value_heads: key-value heads.
        head: width of a head.
    """

    projections: tuple[_Projections, ...]
    norms: tuple[Tensor, Tensor]
    epsilon: float
    heads: int
    key_value_heads: int
    head: int

    @property
    def kept_numbers(self) -> int:
        """Numbers that a forward pass keeps of a token."""
        heads = (self.heads + self.key_value_heads) * self.head
        return 4 * self.norms[0].shape[0] + 2 * heads + 3 * self.projections[2].width // 2

    def forward(
        self,
        states: Tensor,
        sequences: Sequence[Sequences],
        into: Tensor,
        scratch: Workspace,
        kept: Workspace | None,
    ) -> LayerState | None:
        """Run the layer without autograd.

        Args:
            states: input ``[N, H]``; stays as it is.
            sequences: of tokens, which together are the first of the N rows; each attends to itself.
            into: where the output ``[N, H]`` goes.
            scratch: for what is not needed afterwards.
            kept: for what `backward` needs; None: nothing is kept for it.

        Returns:
            What `backward` needs, in `kept`.
        """
        qkv, out, gate_up, down = self.projections
        space = scratch if kept is None else kept
        rows, wide = states.shape[0], states.dtype
        first = Normal.of(states, self.norms[0], self.epsilon, qkv.dtype, space, scratch)
        joint = qkv.forward(first.values, scratch.take(rows, qkv.width, dtype=qkv.dtype))
        heads = self._split_heads(scratch.cast(joint, wide), sequences, space)
        # A small graph of its own: attention's derivative is torch's.
        for tensor in chain.from_iterable(heads):
            tensor.requires_grad_(kept is not None)
        with torch.set_grad_enabled(kept is not None):
            attended = [functional.scaled_dot_product_attention(*own, is_causal=True, enable_gqa=True) for own in heads]
        joined = _join_heads(attended, sequences, scratch.take(rows, self.heads * self.head, dtype=out.dtype))
        middle = out.forward_add(joined, states, space.take(*states.shape, dtype=wide), scratch)
        second = Normal.of(middle, self.norms[1], self.epsilon, gate_up.dtype, space, scratch)
        both = gate_up.forward(second.values, scratch.take(rows, gate_up.width, dtype=gate_up.dtype))
        gate, up = scratch.cast(both, wide).chunk(2, dim=1)
        if kept is None:
            product = scratch.cast(functional.silu(gate, inplace=True).mul_(up), down.dtype)
            down.forward_add(product, middle, into, scratch)
            return None
        product, slopes = _gate(gate, up, down.dtype, kept, scratch)
        down.forward_add(product, middle, into, scratch)
        return LayerState(states, middle, (first, second), heads, attended, product, slopes)

    def backward(
        self,
        slope: Tensor,
        state: LayerState,
        sequences: Sequence[Sequences],
        gradients: LayerGradients,
        scratch: Workspace,
        *,
        last: int | None,
    ) -> Tensor | None:
        """Go back through the layer.

        Args:
            slope: gradient of the output, ``[N, H]``, zeros in rows beyond the tokens; overwritten.
            state: of the forward pass.
            sequences: of that pass.
            gradients: buffers that those of the adapters are added to.
            scratch: for what is not needed afterwards.
            last: group of `LAYER_MAPS` whose input depends on no adapter, so that the gradient ends there; or None.

        Returns:
            Gradient of the input, ``[N, H]``; None with `last`.
        """
        qkv, out, gate_up, down = self.projections
        assert isinstance(qkv, MergedProjections)
        assert isinstance(out, MergedProjections)
        assert isinstance(gate_up, MergedProjections)
        assert isinstance(down, MergedProjections)

        first, second = state.normals
        rows, wide = slope.shape[0], slope.dtype

        d_down = scratch.cast(slope, down.dtype)
        down.backward(d_down, state.product, gradients[3], scratch)
        if last == 3:
            return None
        width = state.product.shape[1]
        d_product = down.backward_input(d_down, scratch.take(rows, width, dtype=down.dtype))
        d_both = scratch.take(rows, 2 * width, dtype=gate_up.dtype)
        torch.mul(d_product, state.slopes[0], out=d_both[:, :width])
        torch.mul(d_product, state.slopes[1], out=d_both[:, width:])
        gate_up.backward(d_both, second.values, gradients[2], scratch)
        if last == 2:
            return None
        d_normal = gate_up.backward_input(d_both, scratch.take(*slope.shape, dtype=gate_up.dtype))
        second.add_slope(slope, scratch.cast(d_normal, wide), state.middle, self.norms[1])

        d_out = scratch.cast(slope, out.dtype)
        joined = scratch.take(rows, self.heads * self.head, dtype=out.dtype)
        out.backward(d_out, _join_heads(state.attended, sequences, joined), gradients[1], scratch)
        if last == 1:
            return None
        d_joined = scratch.cast(out.backward_input(d_out, scratch.take(*joined.shape, dtype=out.dtype)), wide)
        d_rows = d_joined.unflatten(1, (self.heads, self.head))
        d_attended = [own.of(d_rows).transpose(1, 2) for own in sequences]
        d_heads = torch.autograd.grad(state.attended, list(chain.from_iterable(state.heads)), d_attended)
        d_qkv = scratch.cast(self._join_slopes(d_heads, sequences, scratch), qkv.dtype, rows=rows)
        qkv.backward(d_qkv, first.values, gradients[0], scratch)
        if last == 0:
            return None
        d_normal = qkv.backward_input(d_qkv, scratch.take(*slope.shape, dtype=qkv.dtype))
        first.add_slope(slope, scratch.cast(d_normal, wide), state.states, self.norms[0])
        return slope

    def _split_heads(self, qkv: Tensor, sequences: Sequence[Sequences], space: Workspace) -> list[_Heads]:
        turned, every = self.heads + self.key_value_heads, qkv.unflatten(1, (-1, self.head))
        tokens = sequences[-1].stop
        turned_rows = space.take(tokens, turned, self.head, dtype=qkv.dtype)
        # A copy of the values, so that the joint projection is not kept for them.
        values = space.take(tokens, self.key_value_heads, self.head, dtype=qkv.dtype)
        values.copy_(every[:tokens, turned:])
        heads: list[_Heads] = []
        for own in sequences:
            rotated = own.rotation.apply(own.of(every[:, :turned]), own.of(turned_rows))
            queries, keys = rotated.split((self.heads, self.key_value_heads), dim=2)
            one, other, third = (part.transpose(1, 2) for part in (queries, keys, own.of(values)))
            # Under version counters of their own: autograd would take what is written beside them for a change of them.
            heads.append((one.data, other.data, third.data))
        return heads

    def _join_slopes(self, slopes: Sequence[Tensor], sequences: Sequence[Sequences], scratch: Workspace) -> Tensor:
        """Gradient of the joint projection ``[tokens, Σ]`` from those of queries, keys and values in turn."""
        turned = self.heads + self.key_value_heads
        joint = scratch.take(sequences[-1].stop, turned + self.key_value_heads, self.head, dtype=slopes[0].dtype)
        for index, own in enumerate(sequences):
            queries, keys, values = (slope.transpose(1, 2) for slope in slopes[3 * index : 3 * index + 3])
            rows = own.of(joint)
            own.rotation.apply(queries, rows[:, :, : self.heads], backward=True)
            own.rotation.apply(keys, rows[:, :, self.heads : turned], backward=True)
            rows[:, :, turned:] = values
        return joint.flatten(1)


def _gate(
    gate: Tensor, up: Tensor, dtype: torch.dtype, kept: Workspace, scratch: Workspace
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """silu(gate) ∘ up and its slopes along both, all ``[N, I]``, of that type in `kept`; `gate` is overwritten.

    Along the gate it is σ (1 + gate − silu) ∘ up, with σ at hand here: made later, it would cost another exponential.
    """
    work = kept if dtype == gate.dtype else scratch
    sigmoid = torch.sigmoid(gate, out=work.take(*gate.shape, dtype=gate.dtype))
    silu = torch.mul(gate, sigmoid, out=work.take(*gate.shape, dtype=gate.dtype))
    along_gate = sigmoid.addcmul_(sigmoid, gate.sub_(silu)).mul_(up)
    product = torch.mul(silu, up, out=kept.take(*gate.shape, dtype=dtype))
    return product, (kept.cast(along_gate, dtype), kept.cast(silu, dtype))


def _join_heads(attended: Sequence[Tensor], sequences: Sequence[Sequences], into: Tensor) -> Tensor:
    """``[S, heads, T, head]`` of each length as rows ``[N, heads·head]``, zeros in those beyond the tokens."""
    for part, own in zip(attended, sequences, strict=True):
        own.of(into).copy_(part.detach().transpose(1, 2).flatten(2))
    into[sequences[-1].stop :].zero_()
    return into
