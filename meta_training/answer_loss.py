"""The loss of the outer loop: how well adapters answer questions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perk.inner_loss import InnerLoss, double_backward
from perk.lora import AdaptedModel
from perk.segment import Segment

__all__ = ["AnswerLoss"]


class AnswerLoss:
    """Mean NLL of the tokens of a document's answers under its adapter, over the whole vocabulary."""

    def __init__(self, adapted: AdaptedModel, *, token_limit: int) -> None:
        """Take at most `token_limit` tokens of questions at a time, unless one question has more."""
        self._adapted = adapted
        self._token_limit = token_limit

    def __call__(self, theta: Tensor, questions: Sequence[Sequence[Segment]]) -> tuple[float, float, Tensor]:
        """Ask.

        Args:
            theta: adapters of D documents, ``[D, P]``.
            questions: for each document, its questions: prompt as prefix, answer as text.

        Returns:
            The loss in nats, averaged over documents; the share of questions whose every token was the likeliest; and
            the gradient ``[D, P]`` of the losses' sum.
        """
        objective = InnerLoss(self._adapted, questions, token_limit=self._token_limit)
        theta = theta.detach().requires_grad_()
        adjoint = torch.zeros_like(theta, requires_grad=False)
        loss_sum, wrong, asked = 0.0, 0, sum(len(q) for q in questions)
        for batch in objective.batches:
            ready = objective.prepare(batch)
            shares = objective.weights(ready)
            with torch.enable_grad(), double_backward(False):
                states = objective.predicting_states(ready.batch.rows_of(theta), ready)
                loss = objective.loss(states, ready, shares)
                (gradient,) = torch.autograd.grad(loss.sum(), theta)
            adjoint += gradient
            loss_sum += float(loss.detach().sum())
            with torch.no_grad():
                missed = ((states @ self._adapted.base.head.T).argmax(-1) != ready.batch.targets) & (shares > 0)
            # A question is wrong once, however many of its tokens are.
            rows = ready.batch.positions // ready.batch.ids.shape[1]
            wrong += sum(len(set(r[m].tolist())) for r, m in zip(rows, missed, strict=True))
        return loss_sum / len(questions), 1 - wrong / asked, adjoint
