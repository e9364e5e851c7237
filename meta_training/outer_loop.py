"""The outer loop's gradient: answer loss after the inner loop, differentiated through its last T steps.

With θ_0 the initialisation, g_k the inner gradient at θ_k, and θ_{k+1} = U_k(θ_k, g_k(θ_k), η_k) the update rule, the
adjoint v_k = ∂L/∂θ_k runs backwards from v_N, the answer loss's own gradient:

    v_k = (∂U_k/∂θ)ᵀ v_{k+1} + (∂g_k/∂θ)ᵀ (∂U_k/∂g)ᵀ v_{k+1}      for the last T steps,
    v_k = v_{k+1}                                                for the steps before them (PERK section 3.3).

Each step is differentiated on its own, one micro-batch after the other: memory does not grow with N, and for long
documents, whose graphs are rebuilt on the way back, not with the document either. Step sizes of the cut steps still
receive their direct gradient (∂U_k/∂η)ᵀ v_{k+1}. Without second derivatives (first order) the term with ∂g_k/∂θ is left
out. With answer losses after several steps, each adds its own gradient to the adjoint of the parameters it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meta_training.answer_loss import AnswerLoss
from perk.batches import MicroBatch
from perk.checkpoint import Checkpoint
from perk.gradient_graphs import GradientGraphs
from perk.inner_loss import InnerLoss, PreparedBatch
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import InnerSettings
from perk.update_rule import Moments, UpdateRule

__all__ = ["MetaParameters", "OuterLoop", "OuterResult"]

# Captured passes that are kept on a GPU: those of one draw's micro-batches. The next draw has other shapes.
_MOST_GRAPHS = 16


class MetaParameters:
    """What meta-training learns, as leaves with gradients.

    Attributes:
        initial: adapter initialisation, ``[P]``.
        log_step_sizes: logarithm of each tensor's step size in each step, ``[N, M]``.
        weighting: token weighting, or None.
    """

    def __init__(self, checkpoint: Checkpoint, base_hidden_size: int) -> None:
        """Copy a checkpoint's values.

        Raises:
            CheckpointError: a tensor of the token weighting is missing or has another shape.
        """
        self.initial = checkpoint.tensors["initial"].clone().requires_grad_()
        self.log_step_sizes = checkpoint.tensors["log_step_sizes"].clone().requires_grad_()
        self.weighting = checkpoint.token_weighting(base_hidden_size)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> MetaParameters:
        """Move to where the model computes; before training starts."""
        self.initial = self.initial.detach().to(device, dtype).requires_grad_()
        self.log_step_sizes = self.log_step_sizes.detach().to(device, dtype).requires_grad_()
        if self.weighting is not None:
            self.weighting.to(device, dtype)
        return self

    def weighting_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of the token weighting."""
        return [] if self.weighting is None else list(self.weighting.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Current values under a checkpoint's names."""
        values = {"initial": self.initial.detach(), "log_step_sizes": self.log_step_sizes.detach()}
        return values if self.weighting is None else values | self.weighting.named_tensors()


@dataclass(frozen=True)
class OuterResult:
    """What one outer step measured, averaged over its D documents.

    Attributes:
        answer_loss: mean NLL per answer token, in nats.
        exact: share of questions whose every answer token was the likeliest (teacher-forced).
        loss_before: inner loss entering the first step.
        loss_after: inner loss entering the last step.
    """

    answer_loss: float
    exact: float
    loss_before: float
    loss_after: float


@dataclass
class _Reading:
    """A micro-batch and the weights of its tokens, as a graph and as the leaf that the steps see, and its gradient."""

    prepared: PreparedBatch
    weights: Tensor
    leaf: Tensor
    gradient: Tensor

    @classmethod
    def start(cls, inner: InnerLoss, batch: MicroBatch) -> _Reading:
        prepared = inner.prepare(batch)
        with torch.enable_grad():
            weights = inner.weights(prepared)
        leaf = weights.detach().requires_grad_()
        return cls(prepared, weights, leaf, torch.zeros_like(leaf, requires_grad=False))


@dataclass
class _Step:
    """A step of the forward pass, as far as the way back needs it."""

    theta: Tensor
    gradient: Tensor
    moments: Moments
    parts: list[Tensor] = field(default_factory=list)


class OuterLoop:
    """Computes meta-gradients for D documents at a time."""

    def __init__(
        self,
        adapted: AdaptedModel,
        settings: InnerSettings,
        *,
        unrolled: int,
        token_limit: int,
        graph_tokens: int,
        first_order: bool = False,
        step_losses: Sequence[float] = (1.0,),
    ) -> None:
        """Plan.

        Args:
            adapted: the model.
            settings: of the inner loop.
            unrolled: T, number of steps at the end that are differentiated through.
            token_limit: most tokens of a micro-batch.
            graph_tokens: keep the graphs of the unrolled steps for documents up to this many tokens; beyond, each is
                rebuilt on the way back, which costs one more pass a step and bounds memory.
            first_order: leave out the derivative of the inner gradients.
            step_losses: relative weights of the answer losses after each of the last steps, the final one last.
        """
        self.adapted = adapted
        self.settings = settings
        self.unrolled = min(unrolled, settings.steps)
        self.token_limit = token_limit
        self.graph_tokens = graph_tokens
        self.first_order = first_order
        # How much the answer loss under the parameters after k steps counts, by k.
        first = settings.steps - len(step_losses) + 1
        self._loss_weights = {first + i: w / sum(step_losses) for i, w in enumerate(step_losses) if w > 0}
        self._rule = UpdateRule(settings, adapted.layout.sizes)
        self._answers = AnswerLoss(adapted, token_limit=token_limit)
        self._graphs = GradientGraphs(_MOST_GRAPHS) if adapted.base.device.type == "cuda" else None

    def backward(
        self, meta: MetaParameters, documents: Sequence[Sequence[Segment]], questions: Sequence[Sequence[Segment]]
    ) -> OuterResult:
        """Add the meta-gradient of D documents, averaged over them, to the gradients of `meta`.

        Args:
            meta: what is learned.
            documents: segments of each document.
            questions: for each document, its questions: prompt as prefix, answer as text.
        """
        count = len(documents)
        inner = InnerLoss(
            self.adapted,
            documents,
            weighting=meta.weighting,
            candidates=self.settings.candidates,
            token_limit=self.token_limit,
        )
        readings = [_Reading.start(inner, batch) for batch in inner.batches]
        tokens = self.unrolled * sum(batch.ids.numel() for batch in inner.batches)
        keep = not self.first_order and tokens <= self.graph_tokens

        steps, theta, losses = self._forward(meta, count, inner, readings, keep)
        answer_loss, exact, adjoint = self._answers(theta, questions)
        adjoint *= self._loss_weights.get(len(steps), 0.0) / count
        early = {
            index: self._answers(steps[index].theta, questions)[2] * (weight / count)
            for index, weight in self._loss_weights.items()
            if index < len(steps)
        }
        self._way_back(meta, inner, readings, steps, adjoint, early)

        if meta.weighting is not None:
            torch.autograd.backward([r.weights for r in readings], [r.gradient for r in readings])
        return OuterResult(answer_loss, exact, float(losses[0].mean()), float(losses[-1].mean()))

    def _forward(
        self,
        meta: MetaParameters,
        documents: int,
        inner: InnerLoss,
        readings: list[_Reading],
        keep: bool,
    ) -> tuple[list[_Step], Tensor, list[Tensor]]:
        theta = meta.initial.detach().expand(documents, -1).contiguous()
        moments = self._rule.start(theta)
        steps, losses = [], []
        for index in range(self.settings.steps):
            graph_kept = keep and index >= self.settings.steps - self.unrolled
            theta.requires_grad_()
            step = _Step(theta, torch.zeros_like(theta, requires_grad=False), moments)
            total = theta.new_zeros(documents, requires_grad=False)
            for reading in readings:
                if graph_kept:
                    loss, part = inner.gradient(theta, reading.prepared, reading.leaf)
                    step.gradient += part.detach()
                    step.parts.append(part)
                elif self._graphs is not None:
                    loss = self._graphs.add_gradient(inner, theta, reading.prepared, reading.leaf, step.gradient)
                else:
                    loss = inner.add_gradient(theta, reading.prepared, reading.leaf, step.gradient)
                total += loss
            with torch.no_grad():
                theta, moments = self._rule.step(
                    theta.detach(), step.gradient, moments, meta.log_step_sizes[index].detach(), index
                )
            steps.append(step)
            losses.append(total)
        return steps, theta, losses

    def _way_back(
        self,
        meta: MetaParameters,
        inner: InnerLoss,
        readings: list[_Reading],
        steps: list[_Step],
        adjoint: Tensor,
        early: dict[int, Tensor],
    ) -> None:
        """Run the adjoint to the initialisation; leaves the gradients of the token weights with the readings.

        `early` has the gradients ``[D, P]`` of answer losses before the last step, by the step that follows them.
        """
        step_size_gradient = torch.zeros_like(meta.log_step_sizes, requires_grad=False)
        moments_adjoint: tuple[Tensor, ...] = ()
        for index in reversed(range(len(steps))):
            step = steps[index]
            theta = step.theta.detach().requires_grad_()
            gradient = step.gradient.requires_grad_()
            moments = None if step.moments is None else tuple(m.detach().requires_grad_() for m in step.moments)
            rates = meta.log_step_sizes[index].detach().requires_grad_()
            with torch.enable_grad():
                moved, new_moments = self._rule.step(theta, gradient, moments, rates, index)  # type: ignore[arg-type]
            if index < len(steps) - self.unrolled:
                (step_size_gradient[index],) = torch.autograd.grad(moved, rates, adjoint)
                adjoint = adjoint + early.get(index, 0)
                continue
            outputs = [moved, *(new_moments or ())]
            upstream = [adjoint, *moments_adjoint]
            theta_part, gradient_part, step_size_gradient[index], *rest = torch.autograd.grad(
                outputs[: len(upstream)], [theta, gradient, rates, *(moments or ())], upstream, allow_unused=True
            )
            moments_adjoint = tuple(rest)
            adjoint = theta_part + early.get(index, 0)
            if self.first_order:
                continue
            for place, reading in enumerate(readings):
                part, source = step.parts[place] if step.parts else None, step.theta
                if part is None:
                    source = theta
                    _, part = inner.gradient(theta, reading.prepared, reading.leaf)
                wanted = [source, reading.leaf]
                through_theta, through_weights = torch.autograd.grad(part, wanted, gradient_part)
                adjoint = adjoint + through_theta
                reading.gradient += through_weights
            step.parts.clear()
        _accumulate(meta.initial, adjoint.sum(0))
        _accumulate(meta.log_step_sizes, step_size_gradient)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
