"""The inner loop: a few gradient steps write documents into adapters (PERK section 3.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perk.batches import MicroBatch
from perk.gradient_graphs import GradientGraphs
from perk.inner_loss import InnerLoss, PreparedBatch
from perk.lora import AdaptedModel
from perk.merged_layers import MergedLayers
from perk.segment import Segment
from perk.segment_groups import group_segments
from perk.settings import GroupSettings, InnerSettings
from perk.token_weights import TokenWeighting
from perk.update_rule import Moments, UpdateRule

__all__ = ["EncodedDocument", "Encoding"]

# One in so many steps, the first ones, multiplies in the base's own type, whatever a CPU is faster in: they are the
# largest, and where the loss jumps under them, rounding decides where it lands.
_EXACT_STEPS = 6


@dataclass(frozen=True)
class EncodedDocument:
    """What encoding leaves of a document.

    Attributes:
        adapter: flat float32 buffer ``[P]`` on the CPU.
        tokens: tokens that carried loss.
        segments: segments they came in.
        steps: inner steps taken, each of which reads the document once.
        loss_before: weighted mean NLL per token entering the first step, in nats.
        loss_after: the same entering the last step (no further pass is spent to measure the loss after it); where
            groups of segments take turns in it, of each entering its turn.
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
class _Turn:
    """Micro-batches, by their places, behind which the adapters of those documents move."""

    batches: range
    documents: frozenset[int]

    @classmethod
    def of(cls, places: range, batches: Sequence[MicroBatch]) -> _Turn:
        return cls(places, frozenset(d for place in places for d in batches[place].members.tolist()))


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
        graphs: GradientGraphs | None = None,
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
            graphs: on a CUDA device, what replays the passes of all encodings of this model; None: each is launched.
        """
        base = adapted.base
        self._settings = settings
        self.step = 0
        self.done = False
        self.tokens = [sum(s.loss_tokens for s in segments) for segments in documents]
        self.segments = [len(segments) for segments in documents]
        self.merges = adapted.merges(len(documents), state_limit)
        self._has_entries = [any(segment.weights for segment in segments) for segments in documents]
        groups = [
            _group(segments, None if entries else settings.groups)
            for segments, entries in zip(documents, self._has_entries, strict=True)
        ]
        self._inner_loss = InnerLoss(
            adapted,
            documents,
            weighting=weighting,
            candidates=settings.candidates,
            token_limit=token_limit,
            packed=self.merges,
            groups=groups,
        )
        self._rule = UpdateRule(settings, adapted.layout.sizes)
        self._graphs = graphs
        self._log_step_sizes = log_step_sizes
        self._theta = initial.to(base.device, copy=True).expand(len(documents), -1).contiguous()
        self._moments: Moments = self._rule.start(self._theta)
        batches = self._inner_loss.batches
        hidden_bytes = base.head.shape[1] * base.dtype.itemsize
        state_limit -= (adapted.merged_bytes or 0) if self.merges else 0
        self._keep_states = sum(b.ids.numel() for b in batches) * hidden_bytes <= state_limit
        self._losses: list[Tensor] = []
        self._seconds = 0.0
        self._slices_done = 0
        self._rivals = {
            step - 1 for step in settings.rivals if self._inner_loss.has_candidates and step <= settings.steps
        }
        self._repeats = 0
        # Steps that each document has taken, and times that its adapter has moved in them.
        self._taken = [0] * len(documents)
        self._moves = [0] * len(documents)
        self._whole = [_Turn(range(len(batches)), frozenset(range(len(documents))))]
        self._parted = [_Turn.of(places, batches) for places in self._inner_loss.places]
        self._groups = [len(own) for own in groups]
        self._planned = sum(bool(self._taking(index)) for index in range(settings.steps))
        self._slices = len(batches) * (1 + self._planned + len(self._rivals))
        self._progress = 0.0
        # Micro-batches that the running pass over the documents has read.
        self._read = 0
        self._work = self._run()

    @property
    def steps(self) -> int:
        """Steps in all, as far as it is known: those of the schedule that are taken, and the repeated ones so far."""
        return self._planned + self._repeats

    @property
    def progress(self) -> float:
        """Share of the planned slices that are done, 0 to 1; where a step is to be repeated, it stands still."""
        return self._progress

    @property
    def segments_done(self) -> list[int]:
        """Segments of each document that the running pass over it has read, estimated from its share of slices."""
        return [segments * self._read // len(self._inner_loss.batches) for segments in self.segments]

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
        self._progress = max(self._progress, self._slices_done / self._slices)
        self.done = self._slices_done == self._slices
        if self.done:
            # It holds what it worked with, and this object holds it: memory that nothing would free for a while.
            self._work.close()
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
                steps=self._taken[d],
                loss_before=float(self._losses[0][d]),
                loss_after=float(self._losses[-1][d]),
                seconds=self._seconds,
            )
            for d in range(len(self.tokens))
        ]

    def _run(self) -> Generator[None]:
        """The inner loop itself; yields at the end of each slice."""
        prepared: list[PreparedBatch] = []
        weights: list[Tensor] = []
        for batch in self._inner_loss.batches:
            ready = self._inner_loss.prepare(batch, keep_states=self._keep_states)
            weights.append(self._inner_loss.weights(ready))
            prepared.append(replace(ready, last_states=None))
            self._read = len(prepared)
            yield
        merged: MergedLayers | None = None
        gradient = torch.zeros_like(self._theta)
        for index in range(self._settings.steps):
            if self.merges and (merged is None or merged.dtype != self._products(index)):
                merged = None  # One copy of the weights at a time.
                merged = self._inner_loss.adapted.start_merging(self._products(index))
            if index in self._rivals:
                prepared = yield from self._admit_rivals(prepared, merged)
            moving = self._taking(index)
            while moving:
                total = torch.zeros(len(self.tokens), device=gradient.device)
                for turn in self._turns(index):
                    if merged is not None:
                        merged.merge(self._theta)
                    gradient.zero_()
                    for place in turn.batches:
                        total += self._add_gradient(prepared[place], weights[place], gradient, merged)
                        if place == turn.batches[-1]:
                            self._move(index, gradient, [one for one in moving if one in turn.documents])
                        if place == len(prepared) - 1:
                            self._losses.append(total)
                            self.step += 1
                            for one in moving:
                                self._taken[one] += 1
                            moving = self._unlearned(index, moving)
                            if moving:
                                self._repeats += 1
                                self._slices += len(prepared)
                        self._read = place + 1
                        yield

    def _taking(self, index: int) -> list[int]:
        """Documents that take that step of the schedule."""
        everyone, groups, repeat = range(len(self.tokens)), self._settings.groups, self._settings.repeat
        if groups is None or repeat is None or index < repeat.step:
            return list(everyone)
        left = self._settings.steps - 1 - index
        return [one for one in everyone if left % min(groups.stride, self._groups[one]) == 0]

    def _turns(self, index: int) -> list[_Turn]:
        """A step: what is read of the documents until they move."""
        groups = self._settings.groups
        return self._whole if groups is None or index + 1 < groups.step else self._parted

    def _admit_rivals(
        self, prepared: list[PreparedBatch], merged: MergedLayers | None
    ) -> Generator[None, None, list[PreparedBatch]]:
        """The micro-batches with each document's rivals among its candidates; yields at the end of each slice."""
        if merged is not None:
            merged.merge(self._theta)
        rivals = []
        for ready in prepared:
            rivals.append(self._inner_loss.rivals(self._theta, ready, merged=merged))
            yield
        return self._inner_loss.admit(rivals, prepared)

    def _unlearned(self, index: int, moving: list[int]) -> list[int]:
        """Documents that take the step they have just taken once more."""
        repeat = self._settings.repeat
        if repeat is None or index + 1 != repeat.step or self._repeats == repeat.most:
            return []
        losses = self._losses[-1].tolist()
        return [one for one in moving if losses[one] >= repeat.loss and not self._has_entries[one]]

    def _move(self, index: int, gradient: Tensor, moving: list[int]) -> None:
        """Change the adapters of those documents, by the step sizes of that step; the others wait for them."""
        sizes = self._log_step_sizes[index]
        counts = {self._moves[document] for document in moving}
        for document in moving:
            self._moves[document] += 1
        if len(moving) == len(self._moves) and len(counts) == 1:
            self._theta, self._moments = self._rule.step(self._theta, gradient, self._moments, sizes, counts.pop())
            return
        for document in moving:
            own = slice(document, document + 1)
            moments = None if self._moments is None else (self._moments[0][own], self._moments[1][own])
            theta, moments = self._rule.step(self._theta[own], gradient[own], moments, sizes, self._moves[document] - 1)
            self._theta[own] = theta
            if self._moments is not None and moments is not None:
                for every, one in zip(self._moments, moments, strict=True):
                    every[own] = one

    def _products(self, index: int) -> torch.dtype:
        """Type of the large products of a step."""
        adapted = self._inner_loss.adapted
        exact = index < math.ceil(self._settings.steps / _EXACT_STEPS)
        return adapted.base.dtype if exact else adapted.product_dtype

    def _add_gradient(
        self, prepared: PreparedBatch, weights: Tensor, gradient: Tensor, merged: MergedLayers | None
    ) -> Tensor:
        if self._graphs is not None:
            return self._graphs.add_gradient(self._inner_loss, self._theta, prepared, weights, gradient)
        return self._inner_loss.add_gradient(self._theta, prepared, weights, gradient, merged=merged)


def _group(segments: Sequence[Segment], groups: GroupSettings | None) -> list[list[Segment]]:
    """Groups of a document that take turns; all of it is one where none do."""
    if groups is None or sum(len(segment.ids) for segment in segments) <= groups.above:
        return [list(segments)]
    return group_segments(segments, groups.tokens)
