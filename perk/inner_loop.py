"""The inner loop: a few gradient steps write documents into adapters (PERK section 3.1)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import weighted_cross_entropy
from perk.batches import MicroBatch, make_micro_batches
from perk.lora import AdaptedModel
from perk.merged_layers import MergedLayers
from perk.segment import Segment
from perk.settings import InnerSettings
from perk.token_weights import TokenWeighting
from perk.update_rule import Moments, UpdateRule

__all__ = ["EncodedDocument", "Encoding", "InnerLoss", "PreparedBatch", "double_backward"]


@dataclass(frozen=True)
class EncodedDocument:
    """What encoding leaves of a document.

    Attributes:
        adapter: flat float32 buffer ``[P]`` on the CPU.
        tokens: tokens that carried loss.
        segments: segments they came in.
        steps: inner steps taken.
        loss_before: weighted mean NLL per token entering the first step, in nats.
        loss_after: the same entering the last step (no further pass is spent to measure the loss after it).
        seconds: time spent, summed over slices; for D documents together, of all of them.
    """

    adapter: Tensor
    tokens: int
    segments: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float


@dataclass(frozen=True)
class PreparedBatch:
    """A micro-batch with all that no adapter changes.

    Attributes:
        batch: the micro-batch.
        heads: rows of the LM head that compete for each document's tokens, ``[C, H]`` each.
        targets: ids of the predicted tokens among those rows, ``[D, K]``.
        states: input of the first adapted layer, ``[D·S, T, H]``, or None where it is recomputed.
        last_states: the frozen base's last hidden states of the predicted tokens, ``[D, K, H]``, or None without
            token weighting.
    """

    batch: MicroBatch
    heads: tuple[Tensor, ...]
    targets: Tensor
    states: Tensor | None
    last_states: Tensor | None


class InnerLoss:
    """Token-weighted NLL of D documents' segments under their adapters: the objective of the inner loop.

    The outer loop uses it too, unweighted and over the whole vocabulary: a question is a segment whose prefix is the
    prompt.

    Attributes:
        batches: all micro-batches.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        documents: Sequence[Sequence[Segment]],
        *,
        weighting: TokenWeighting | None = None,
        candidates: int | None = None,
        token_limit: int,
    ) -> None:
        """Plan micro-batches; no model work is done yet.

        Args:
            adapted: the model.
            documents: segments of each of the D documents; each of them has the same turns.
            weighting: weight of each token; None: all weigh the same.
            candidates: see `InnerSettings.candidates`.
            token_limit: most tokens of a micro-batch.
        """
        self.adapted = adapted
        self.weighting = weighting
        self.batches, self._turns = _plan(documents, token_limit, adapted.base.eos_id)
        head = adapted.base.head
        self._vocabularies: list[Tensor] | None = None
        self._heads: tuple[Tensor, ...] = (head,) * len(documents)
        if candidates is not None and candidates < head.shape[0]:
            self._vocabularies = [_vocabulary(segments, candidates).to(head.device) for segments in documents]
            self._heads = tuple(head[ids] for ids in self._vocabularies)

    def of_step(self, step: int) -> list[int]:
        """Indices of the micro-batches that an inner step reads."""
        return self._turns[step % len(self._turns)]

    @torch.no_grad()
    def prepare(self, batch: MicroBatch, *, keep_states: bool = True) -> PreparedBatch:
        """Compute what no adapter changes: activations below the first adapted layer, and states for the weights."""
        device = self.adapted.base.device
        batch = MicroBatch(*(getattr(batch, name).to(device) for name in batch.__dataclass_fields__))
        states = self.adapted.lower_states(batch.ids)
        last_states = None
        if self.weighting is not None:
            last_states = _pick(self.adapted.upper_states(states), batch.own_positions)
        targets = batch.targets
        if self._vocabularies is not None:
            pairs = zip(self._vocabularies, targets, strict=True)
            targets = torch.stack([torch.searchsorted(ids, row) for ids, row in pairs])
        return PreparedBatch(batch, self._heads, targets, states if keep_states else None, last_states)

    def weights(self, prepared: PreparedBatch) -> Tensor:
        """Weight of each loss token, its share of the document's mean included, ``[D, K]``."""
        shares = prepared.batch.shares.to(self.adapted.base.dtype)
        if self.weighting is None or prepared.last_states is None:
            return shares
        # Learned in float32, whatever the base computes in.
        weights: Tensor = self.weighting(prepared.last_states.to(self.weighting.up.weight.dtype))
        return shares * weights.to(shares.dtype)

    def predicting_states(
        self,
        theta: Tensor,
        prepared: PreparedBatch,
        *,
        gradient: Tensor | None = None,
        merged: MergedLayers | None = None,
    ) -> Tensor:
        """Last hidden states ``[D, K, H]`` that predict the loss tokens, under adapters ``[D, P]``.

        With `gradient`, the backward pass adds the adapters' to that buffer (`AdaptedModel.bind`). With `merged` too,
        the only document's adapter has been merged into those layers.
        """
        states = prepared.states
        if states is None:
            with torch.no_grad():
                states = self.adapted.lower_states(prepared.batch.ids)
        if merged is not None and gradient is not None:
            last = self.adapted.merged_states(merged, states, theta, gradient)
        else:
            with self.adapted.bind(theta.to(states.dtype), gradient=gradient):
                last = self.adapted.upper_states(states)
        return _pick(last, prepared.batch.positions)

    def __call__(self, theta: Tensor, prepared: PreparedBatch, weights: Tensor) -> Tensor:
        """Weighted NLL ``[D]`` of a micro-batch under adapters ``[D, P]``."""
        return self.loss(self.predicting_states(theta, prepared), prepared, weights)

    def loss(self, states: Tensor, prepared: PreparedBatch, weights: Tensor) -> Tensor:
        """Weighted NLL ``[D]`` from predicting states ``[D, K, H]``."""
        if self._vocabularies is None:
            return weighted_cross_entropy(states, self.adapted.base.head, prepared.targets, weights)
        one = zip(states.split(1), prepared.heads, prepared.targets.split(1), weights.split(1), strict=True)
        return torch.cat([weighted_cross_entropy(*document) for document in one])

    def gradient(
        self,
        theta: Tensor,
        prepared: PreparedBatch,
        weights: Tensor,
        *,
        differentiable: bool,
        merged: MergedLayers | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss ``[D]`` and its gradient ``[D, P]`` with respect to `theta`, a leaf.

        Args:
            theta: adapters, ``[D, P]``, requiring a gradient.
            prepared: the micro-batch.
            weights: of its loss tokens, ``[D, K]``.
            differentiable: keep the graph, so that the gradient can be differentiated again.
            merged: layers into which `theta` has been merged, for one document's gradient that is not.
        """
        with torch.enable_grad(), double_backward(differentiable):
            if differentiable:
                loss = self(theta, prepared, weights)
                (gradient,) = torch.autograd.grad(loss.sum(), theta, create_graph=True)
            else:
                gradient = torch.zeros_like(theta, requires_grad=False)
                states = self.predicting_states(theta, prepared, gradient=gradient, merged=merged)
                loss = self.loss(states, prepared, weights)
                torch.autograd.grad(loss.sum(), theta, allow_unused=True)
        return loss.detach(), gradient


def double_backward(needed: bool) -> AbstractContextManager[None]:
    """Attention kernels for a pass: only the plain one can be differentiated twice."""
    every = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel([SDPBackend.MATH] if needed else every)
    return context


class Encoding:
    """Encodes D documents together, a slice at a time: prepare a micro-batch, or add one to the gradient of a step."""

    def __init__(
        self,
        adapted: AdaptedModel,
        weighting: TokenWeighting | None,
        settings: InnerSettings,
        initial: Tensor,
        log_step_sizes: Tensor,
        documents: Sequence[Sequence[Segment]],
        *,
        token_limit: int,
        state_limit: int,
    ) -> None:
        """Plan the encoding; no model work is done yet.

        Args:
            adapted: the model.
            weighting: weight of each token, or None.
            settings: of the inner loop.
            initial: the meta-learned initialisation, ``[P]``.
            log_step_sizes: logarithms of the step sizes, ``[N, M]``.
            documents: segments of each of the D documents.
            token_limit: most tokens of a micro-batch; bounds the memory of a slice.
            state_limit: most bytes kept over the steps: a copy of the adapted layers' weights to merge the adapter into
                (one document on a CPU; without it, its terms are products of their own), and the activations below
                (without them, they are recomputed).
        """
        base = adapted.base
        self.steps = settings.steps
        self.step = 0
        self.done = False
        read = [[segment for segment in segments if segment.in_first_step] for segments in documents]
        self.tokens = [sum(s.loss_tokens for s in segments) for segments in read]
        self.segments = [len(segments) for segments in read]
        self._inner_loss = InnerLoss(
            adapted, documents, weighting=weighting, candidates=settings.candidates, token_limit=token_limit
        )
        self._rule = UpdateRule(settings, adapted.layout.sizes)
        self._log_step_sizes = log_step_sizes
        self._theta = initial.to(base.device, copy=True).expand(len(documents), -1).contiguous()
        self._moments: Moments = self._rule.start(self._theta)
        batches = self._inner_loss.batches
        hidden_bytes = base.head.shape[1] * base.dtype.itemsize
        self.merges = adapted.merges(len(documents), state_limit)
        state_limit -= (adapted.merged_bytes or 0) if self.merges else 0
        self._keep_states = sum(b.ids.numel() for b in batches) * hidden_bytes <= state_limit
        self._losses: list[Tensor] = []
        self._seconds = 0.0
        self._slices_done = 0
        self._slices = len(batches) + sum(len(self._inner_loss.of_step(step)) for step in range(settings.steps))
        # Micro-batches that the running pass over the documents has read, and how many it reads.
        self._read, self._in_pass = 0, len(batches)
        self._work = self._run()

    @property
    def progress(self) -> float:
        """Share of the slices done, 0 to 1."""
        return self._slices_done / self._slices

    @property
    def segments_done(self) -> list[int]:
        """Segments of each document that the running pass over it has read, estimated from its share of slices."""
        return [segments * self._read // self._in_pass for segments in self.segments]

    @property
    def loss(self) -> list[float]:
        """Weighted mean NLL per token entering the last finished step, in nats, of each document; empty before it."""
        return self._losses[-1].tolist() if self._losses else []

    @torch.no_grad()
    def advance(self) -> None:
        """Run one slice.

        Raises:
            RuntimeError: the encoding is done.
        """
        if self.done:
            raise RuntimeError(f"encoding is done: all {self._slices} slices have run")
        started = time.perf_counter()
        next(self._work)
        self._slices_done += 1
        self.done = self._slices_done == self._slices
        self._seconds += time.perf_counter() - started

    def results(self) -> list[EncodedDocument]:
        """One entry a document.

        Raises:
            RuntimeError: the encoding is not done.
        """
        if not self.done:
            raise RuntimeError(f"encoding is not done: {self._slices_done} of {self._slices} slices")
        adapters = self._theta.to("cpu", torch.float32)
        return [
            EncodedDocument(
                adapter=adapters[d].clone(),
                tokens=self.tokens[d],
                segments=self.segments[d],
                steps=self.steps,
                loss_before=float(self._losses[0][d]),
                loss_after=float(self._losses[-1][d]),
                seconds=self._seconds,
            )
            for d in range(len(self.tokens))
        ]

    def _run(self) -> Iterator[None]:
        """The inner loop itself; yields at the end of each slice."""
        prepared: list[PreparedBatch] = []
        weights: list[Tensor] = []
        for batch in self._inner_loss.batches:
            ready = self._inner_loss.prepare(batch, keep_states=self._keep_states)
            weights.append(self._inner_loss.weights(ready))
            prepared.append(replace(ready, last_states=None))
            self._read = len(prepared)
            yield
        merged = self._inner_loss.adapted.start_merging() if self.merges else None
        for step in range(self.steps):
            if merged is not None:
                merged.merge(self._theta)
            gradient = torch.zeros_like(self._theta)
            total = torch.zeros(len(self.tokens), device=gradient.device)
            self._theta.requires_grad_()
            indices = self._inner_loss.of_step(step)
            for read, index in enumerate(indices, start=1):
                loss, part = self._inner_loss.gradient(
                    self._theta, prepared[index], weights[index], differentiable=False, merged=merged
                )
                gradient += part
                total += loss
                if read == len(indices):
                    self._theta, self._moments = self._rule.step(
                        self._theta.detach(), gradient, self._moments, self._log_step_sizes[step], step
                    )
                    self._losses.append(total)
                    self.step = step + 1
                self._read, self._in_pass = read, len(indices)
                yield


def _plan(
    documents: Sequence[Sequence[Segment]], token_limit: int, pad_id: int
) -> tuple[list[MicroBatch], list[list[int]]]:
    """Micro-batches, and which of them each turn reads."""
    turns = sorted({s.turn for segments in documents for s in segments if s.turn is not None})
    parts = [[[s for s in segments if s.turn == turn] for segments in documents] for turn in (None, *turns)]
    totals = [sum(s.loss_weight for s in segments if s.in_first_step) for segments in documents]
    batches: list[MicroBatch] = []
    indices: list[list[int]] = []
    for part in parts:
        planned = make_micro_batches(part, token_limit=token_limit, pad_id=pad_id, totals=totals)
        indices.append(list(range(len(batches), len(batches) + len(planned))))
        batches += planned
    common, *own = indices
    return batches, [common + turn for turn in own] or [common]


def _pick(states: Tensor, positions: Tensor) -> Tensor:
    """States ``[D·S, T, H]`` at positions ``[D, K]`` of each document's ``S·T``, as ``[D, K, H]``."""
    documents, count = positions.shape
    flat = states.reshape(documents, -1, states.shape[-1])
    return flat.gather(1, positions[..., None].expand(documents, count, flat.shape[-1]))


def _vocabulary(segments: Sequence[Segment], candidates: int) -> Tensor:
    """Sorted ids that compete for a document's tokens, ``[C]``."""
    own = {token for segment in segments for token in segment.ids}
    return torch.tensor(sorted(own.union(range(candidates))))
