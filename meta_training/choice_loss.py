"""How surely a reader tells the part that a question is about from others of the same text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import weighted_cross_entropy
from meta_training.choice_example import ChoiceExample
from perk.inner_loss import InnerLoss, double_backward
from perk.lora import AdaptedModel
from perk.merged_layers import MergedLayers
from perk.segment import Segment

__all__ = ["ChoiceLoss"]

_OWN_SHARE = 0.3
# Nats of surprise that make a part less likely by one: all tokens of a question count, though not each for itself.
_TEMPERATURE = 4.0


class ChoiceLoss:
    """NLL of the parts with the answer, where those are the likelier that make the question so (`perk.part_choice`).

    Some of the question's own NLL behind the right parts is added, for a token: to make it unlikely behind all others
    would tell them apart as well, and say less about other questions.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        """Read under one adapter of a model."""
        self._adapted = adapted

    def __call__(
        self, theta: Tensor, choices: Sequence[ChoiceExample], merged: MergedLayers | None = None
    ) -> tuple[float, int, Tensor]:
        """Ask.

        Args:
            theta: the reader, ``[1, P]``.
            choices: questions, each behind parts of its own.
            merged: layers into which `theta` has been merged; None: it goes through the modules.

        Returns:
            The sum of the losses in nats, how many right parts were chosen, and the gradient ``[1, P]``.
        """
        theta = theta.detach().requires_grad_()
        adjoint = torch.zeros_like(theta, requires_grad=False)
        total, chosen = 0.0, 0
        for choice in choices:
            order = sorted(range(len(choice.segments)), key=lambda part: -len(choice.segments[part].ids))
            right = torch.tensor([choice.right[part] for part in order], device=theta.device)
            with torch.enable_grad(), double_backward(False):
                surprise = self._surprise(theta, [choice.segments[part] for part in order], adjoint, merged)
                likely = -surprise / _TEMPERATURE
                told = torch.logsumexp(likely, 0) - torch.logsumexp(likely[right], 0)
                own = surprise[right].mean() / choice.segments[0].loss_tokens
                loss = told + _OWN_SHARE * own
                # The pass adds the gradient to the buffer, and hands none on to theta.
                torch.autograd.grad(loss, theta, allow_unused=True)
            total += float(loss.detach())
            chosen += int(right[surprise.argmin()])
        return total, chosen, adjoint

    def _surprise(
        self, theta: Tensor, segments: Sequence[Segment], adjoint: Tensor, merged: MergedLayers | None
    ) -> Tensor:
        """NLL of the text of each segment, all of the same text; the longest comes first, and they stay in order."""
        tokens = sum(len(segment.ids) for segment in segments)
        # Merged layers go back through the last pass only: all in one.
        objective = InnerLoss(self._adapted, [segments], token_limit=tokens, packed=merged is not None)
        states, targets = [], []
        for batch in objective.batches:
            ready = objective.prepare(batch)
            states.append(objective.predicting_states(theta, ready, gradient=adjoint, merged=merged)[0])
            targets.append(ready.targets[0])
        hidden = torch.cat(states).unflatten(0, (len(segments), -1))
        expected = torch.cat(targets).view(len(segments), -1)
        weights = torch.ones_like(expected, dtype=hidden.dtype)
        return weighted_cross_entropy(hidden, self._adapted.base.head, expected, weights)
