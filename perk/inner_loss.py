"""The objective of the inner loop, and its gradient (PERK section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import weighted_cross_entropy
from perk.batches import PADDING_LIMIT, MicroBatch, loss_weight_of, make_micro_batches, pack_micro_batches
from perk.lora import AdaptedModel
from perk.merged_layers import MergedLayers
from perk.segment import Segment
from perk.token_weights import TokenWeighting

__all__ = ["InnerLoss", "PreparedBatch", "double_backward"]

# Logits of whole vocabularies that are in memory at once.
_LOGITS = 1 << 24
# Padding that a micro-batch may have: a GPU takes longer to start one than to compute some for nothing.
_PADDING_LIMITS = {"cpu": PADDING_LIMIT, "cuda": 0.5}


@dataclass(frozen=True)
class PreparedBatch:
    """A micro-batch with all that no adapter changes.

    Attributes:
        batch: the micro-batch.
        heads: rows of the LM head that compete for each of its documents' tokens, ``[C, H]`` each.
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
        places: of those of each group of segments, in order.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        documents: Sequence[Sequence[Segment]],
        *,
        weighting: TokenWeighting | None = None,
        candidates: int | None = None,
        token_limit: int,
        packed: bool = False,
        groups: Sequence[Sequence[Sequence[Segment]]] | None = None,
    ) -> None:
        """Plan micro-batches; no model work is done yet.

        Args:
            adapted: the model.
            documents: segments of each of the D documents.
            weighting: weight of each token; None: all weigh the same.
            candidates: see `InnerSettings.candidates`.
            token_limit: most tokens of a micro-batch.
            packed: without padding, for `prepare`, and for `add_gradient` with merged layers; modules refuse them.
            groups: of the segments of each document; None: it is one group. The first micro-batches hold the first
                group of each document, and so on.

        Raises:
            ValueError: several documents are to be packed.
        """
        self.adapted = adapted
        self.weighting = weighting
        if packed and len(documents) != 1:
            raise ValueError(f"documents: {len(documents)}; packed micro-batches are of one")
        loss_weights = [loss_weight_of(segments) for segments in documents]
        self.batches: list[MicroBatch] = []
        self.places: list[range] = []
        for group in zip_longest(*(groups or [[own] for own in documents]), fillvalue=()):
            first = len(self.batches)
            self.batches += self._cut(group, loss_weights, token_limit, packed=packed)
            self.places.append(range(first, len(self.batches)))
        head = adapted.base.head
        self._vocabularies: list[Tensor] | None = None
        self._heads: tuple[Tensor, ...] = (head,) * len(documents)
        if candidates is not None and candidates < head.shape[0]:
            self._vocabularies = [_vocabulary(segments, candidates).to(head.device) for segments in documents]
            self._heads = tuple(head[ids] for ids in self._vocabularies)

    @property
    def has_candidates(self) -> bool:
        """Whether each document has a vocabulary of its own, of the tokens that compete."""
        return self._vocabularies is not None

    @torch.no_grad()
    def prepare(self, batch: MicroBatch, *, keep_states: bool = True) -> PreparedBatch:
        """Compute what no adapter changes: activations below the first adapted layer, and states for the weights."""
        device = self.adapted.base.device
        batch = batch.map(lambda tensor: tensor.to(device))
        states = self.adapted.lower_states(batch.ids, batch.lengths)
        last_states = None
        if self.weighting is not None:
            last_states = _pick(self.adapted.upper_states(states, batch.lengths), batch.own_positions)
        targets = self._among_candidates(batch)
        return PreparedBatch(batch, self._heads_of(batch), targets, states if keep_states else None, last_states)

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
        """Last hidden states ``[D, K, H]`` that predict the loss tokens, under its documents' adapters ``[D, P]``.

        With `gradient`, the backward pass adds the adapters' to that buffer (`AdaptedModel.bind`). With `merged` too,
        the only document's adapter has been merged into those layers.
        """
        states = prepared.states
        if states is None:
            with torch.no_grad():
                states = self.adapted.lower_states(prepared.batch.ids, prepared.batch.lengths)
        if merged is not None and gradient is not None:
            last = self.adapted.merged_states(merged, states, theta, gradient, prepared.batch.lengths)
        else:
            with self.adapted.bind(theta.to(states.dtype), gradient=gradient):
                last = self.adapted.upper_states(states, prepared.batch.lengths)
        return _pick(last, prepared.batch.positions)

    def loss(self, states: Tensor, prepared: PreparedBatch, weights: Tensor) -> Tensor:
        """Weighted NLL ``[D]`` from predicting states ``[D, K, H]``."""
        if self._vocabularies is None:
            return weighted_cross_entropy(states, self.adapted.base.head, prepared.targets, weights)
        one = zip(states.split(1), prepared.heads, prepared.targets.split(1), weights.split(1), strict=True)
        return torch.cat([weighted_cross_entropy(*document) for document in one])

    @torch.no_grad()
    def rivals(self, theta: Tensor, prepared: PreparedBatch, *, merged: MergedLayers | None = None) -> list[Tensor]:
        """What adapters ``[D, P]`` come closest to mistaking the loss tokens for, of the whole vocabulary.

        Returns:
            Token ids, each once, for each document of the micro-batch.
        """
        head, batch = self.adapted.base.head, prepared.batch
        # Nothing goes backward from here.
        gradient = None if merged is None else theta.new_empty(0)
        states = self.predicting_states(batch.rows_of(theta), prepared, gradient=gradient, merged=merged)
        rows = max(1, _LOGITS // len(head))
        found = []
        for own, targets, shares in zip(states, batch.targets, batch.shares, strict=True):
            real = shares > 0
            pieces = zip(own[real].split(rows), targets[real, None].split(rows), strict=True)
            likeliest = [(some @ head.T).scatter_(1, wanted, -torch.inf).argmax(-1) for some, wanted in pieces]
            found.append(torch.cat(likeliest).unique())
        return found

    def admit(self, rivals: Sequence[list[Tensor]], prepared: Sequence[PreparedBatch]) -> list[PreparedBatch]:
        """The same micro-batches, once the rivals found in each are candidates of its documents."""
        assert self._vocabularies is not None
        for ready, found in zip(prepared, rivals, strict=True):
            for document, ids in zip(ready.batch.members.tolist(), found, strict=True):
                self._vocabularies[document] = torch.cat([self._vocabularies[document], ids]).unique()
        self._heads = tuple(self.adapted.base.head[ids] for ids in self._vocabularies)
        return [
            replace(ready, heads=self._heads_of(ready.batch), targets=self._among_candidates(ready.batch))
            for ready in prepared
        ]

    def gradient(self, theta: Tensor, prepared: PreparedBatch, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``[D]`` and its gradient ``[D, P]``, which can be differentiated again; zeros for other documents.

        Args:
            theta: adapters of all documents, ``[D, P]``, requiring a gradient.
            prepared: the micro-batch.
            weights: of its loss tokens, a row for each of its documents.
        """
        with torch.enable_grad(), double_backward(True):
            states = self.predicting_states(prepared.batch.rows_of(theta), prepared)
            loss = self.loss(states, prepared, weights)
            (gradient,) = torch.autograd.grad(loss.sum(), theta, create_graph=True)
        return prepared.batch.add_to(loss.new_zeros(len(theta)), loss.detach()), gradient

    def add_gradient(
        self,
        theta: Tensor,
        prepared: PreparedBatch,
        weights: Tensor,
        gradient: Tensor,
        *,
        merged: MergedLayers | None = None,
    ) -> Tensor:
        """Loss ``[D]``; adds its gradient to the buffer `gradient` ``[D, P]``, the only one of that size where the
        micro-batch has all documents.

        Args:
            theta: adapters of all documents, ``[D, P]``.
            prepared: the micro-batch.
            weights: of its loss tokens, a row for each of its documents.
            gradient: what to add to.
            merged: layers into which `theta` has been merged, for one document.
        """
        batch = prepared.batch
        own = batch.rows_of(theta.detach()).requires_grad_()
        into = gradient if len(own) == len(theta) else torch.zeros_like(own, requires_grad=False)
        with torch.enable_grad(), double_backward(False):
            states = self.predicting_states(own, prepared, gradient=into, merged=merged)
            loss = self.loss(states, prepared, weights.detach())
            torch.autograd.grad(loss.sum(), own, allow_unused=True)
        if into is not gradient:
            batch.add_to(gradient, into)
        return batch.add_to(loss.new_zeros(len(theta)), loss.detach())

    def _cut(
        self, group: Sequence[Sequence[Segment]], loss_weights: Sequence[float], token_limit: int, *, packed: bool
    ) -> list[MicroBatch]:
        """Micro-batches of some segments of each document; the weights are of whole documents."""
        if packed:
            return pack_micro_batches(group[0], token_limit=token_limit, loss_weight=loss_weights[0])
        base = self.adapted.base
        return make_micro_batches(
            group,
            token_limit=token_limit,
            pad_id=base.eos_id,
            padding_limit=_PADDING_LIMITS[base.device.type],
            loss_weights=loss_weights,
        )

    def _heads_of(self, batch: MicroBatch) -> tuple[Tensor, ...]:
        return tuple(self._heads[document] for document in batch.members.tolist())

    def _among_candidates(self, batch: MicroBatch) -> Tensor:
        """The batch's targets as rows of its documents' heads, ``[D, K]``."""
        if self._vocabularies is None:
            return batch.targets
        pairs = zip(batch.members.tolist(), batch.targets, strict=True)
        return torch.stack([torch.searchsorted(self._vocabularies[document], row) for document, row in pairs])


def double_backward(needed: bool) -> AbstractContextManager[None]:
    """Attention kernels for a pass: only the plain one can be differentiated twice."""
    every = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel([SDPBackend.MATH] if needed else every)
    return context


def _pick(states: Tensor, positions: Tensor) -> Tensor:
    """States ``[D·S, T, H]`` at positions ``[D, K]`` of each document's ``S·T``, as ``[D, K, H]``."""
    documents, count = positions.shape
    flat = states.reshape(documents, -1, states.shape[-1])
    return flat.gather(1, positions[..., None].expand(documents, count, flat.shape[-1]))


def _vocabulary(segments: Sequence[Segment], candidates: int) -> Tensor:
    """Sorted ids that compete for a document's tokens, ``[C]``."""
    own = {token for segment in segments for token in segment.ids}
    return torch.tensor(sorted(own.union(range(candidates))))
