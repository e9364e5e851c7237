"""First-order gradients of micro-batches on a CUDA device, captured once for a shape and replayed.

A pass through a small model is thousands of small kernels: a CPU takes several times as long to launch them as the
device takes to run them. A CUDA graph launches them all at once. Encoding reads micro-batches of few shapes, each of
them once a step, so that nearly all of its passes are replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perk.inner_loss import InnerLoss, PreparedBatch

__all__ = ["GradientGraphs"]

_Shapes = tuple[torch.Size, ...]


@dataclass(frozen=True)
class _Graph:
    """A captured pass, and where it reads its inputs and leaves its results."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    loss: Tensor
    gradient: Tensor


class GradientGraphs:
    """`InnerLoss.add_gradient` for the encodings of one model, replayed where it can be. Not thread-safe."""

    def __init__(self, most: int = 16) -> None:
        """Keep the graphs of the last so many shapes: each holds its inputs, and all share their working memory."""
        self._most = most
        # Graphs run one after the other and leave nothing behind in the pool: all may use the same memory.
        self._pool = torch.cuda.graph_pool_handle()
        # None for shapes that have come once.
        self._graphs: OrderedDict[_Shapes, _Graph | None] = OrderedDict()

    @torch.no_grad()
    def add_gradient(
        self, inner: InnerLoss, theta: Tensor, prepared: PreparedBatch, weights: Tensor, gradient: Tensor
    ) -> Tensor:
        """As `InnerLoss.add_gradient`: loss ``[D]`` under adapters ``[D, P]``; adds to `gradient` ``[D, P]``."""
        batch, own = prepared.batch, prepared.batch.rows_of(theta)
        inputs = _inputs(inner, own, prepared, weights)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._graphs:
            # The first of its shapes compiles its kernels, which no capture may do.
            self._graphs[shapes] = None
            if len(self._graphs) > self._most:
                self._graphs.popitem(last=False)
            return inner.add_gradient(theta, prepared, weights, gradient)
        captured = self._graphs[shapes] or self._capture(inner, own, prepared, weights)
        self._graphs[shapes] = captured
        self._graphs.move_to_end(shapes)
        for place, tensor in zip(captured.inputs, inputs, strict=True):
            place.copy_(tensor)
        captured.graph.replay()
        batch.add_to(gradient, captured.gradient)
        return batch.add_to(captured.loss.new_zeros(len(theta)), captured.loss)

    def _capture(self, inner: InnerLoss, theta: Tensor, prepared: PreparedBatch, weights: Tensor) -> _Graph:
        batch = prepared.batch
        own = replace(
            prepared,
            batch=batch.map(torch.clone),
            heads=tuple(head.clone() for head in prepared.heads) if inner.has_candidates else prepared.heads,
            targets=prepared.targets.clone(),
            states=None if prepared.states is None else prepared.states.clone(),
            last_states=None,
        )
        own_theta, own_weights = theta.detach().clone(), weights.detach().clone()
        gradient, loss = torch.empty_like(own_theta), own_theta.new_empty(batch.documents)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            gradient.zero_()
            loss.copy_(inner.add_gradient(own_theta, own, own_weights, gradient))
        return _Graph(graph, _inputs(inner, own_theta, own, own_weights), loss, gradient)


def _inputs(inner: InnerLoss, theta: Tensor, prepared: PreparedBatch, weights: Tensor) -> list[Tensor]:
    """All that differs between passes of one model whose kernels are the same."""
    heads = prepared.heads if inner.has_candidates else ()
    states = () if prepared.states is None else (prepared.states,)
    return [theta.detach(), *prepared.batch.tensors, prepared.targets, weights.detach(), *heads, *states]
