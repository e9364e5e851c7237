"""The loss of the outer loop: how well adapters answer questions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perk.inner_loss import InnerLoss, double_backward
from perk.lora import AdaptedModel
from perk.merged_layers import MergedLayers
from perk.segment import Segment

__all__ = ["AnswerLoss"]


class AnswerLoss:
    """Mean NLL of the tokens of a document's answers under its adapter, over the whole vocabulary."""

    def __init__(self, adapted: AdaptedModel, *, token_limit: int) -> None:
        """Take at most `token_limit` tokens of questions at a time, unless one question has more."""
        self._adapted = adapted
        self._token_limit = token_limit

    def __call__(
        self, theta: Tensor, questions: Sequence[Sequence[Segment]], merged: MergedLayers | None = None
    ) -> tuple[float, float, Tensor]:
        """Ask.

        Args:
            theta: adapters of D documents, ``[D, P]``.
            questions: for each document, its questions: prompt as prefix, answer as text.
            merged: layers into which the only document's adapter has been merged; None: all go through the modules.

        Returns:
            The loss in nats, averaged over documents; the share of questions whose every token was the likeliest; and
            the gradient ``[D, P]`` of the losses' sum.
        """
        objective = InnerLoss(self._adapted, questions, token_limit=self._token_limit, packed=merged is not None)
        theta = theta.detach().requires_grad_()
        adjoint = torch.zeros_like(theta, requires_grad=False)
        loss_sum, wrong, asked = 0.0, 0, sum(len(q) for q in questions)
        for batch in objective.batches:
            ready = objective.prepare(batch)
            shares = objective.weights(ready)
            with torch.enable_grad(), double_backward(False):
                into = None if merged is None else adjoint
                states = objective.predicting_states(ready.batch.rows_of(theta), ready, gradient=into, merged=merged)
                loss = objective.loss(states, ready, shares)
                (gradient,) = torch.autograd.grad(loss.sum(), theta, allow_unused=merged is not None)
            if gradient is not None:
                adjoint += gradient
            loss_sum += float(loss.detach().sum())
            with torch.no_grad():
                missed = ((states @ self._adapted.base.head.T).argmax(-1) != ready.batch.targets) & (shares > 0)
            # A question is wrong once, however many of its tokens are.
            own_lengths = ready.batch.row_lengths[: len(ready.batch.row_lengths) // ready.batch.documents]
            ends = torch.tensor(own_lengths, device=missed.device).cumsum(0)
            rows = torch.bucketize(ready.batch.positions, ends, right=True)
            wrong += sum(len(set(r[m].tolist())) for r, m in zip(rows, missed, strict=True))
        return loss_sum / len(questions), 1 - wrong / asked, adjoint
