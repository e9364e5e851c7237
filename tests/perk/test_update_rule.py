"""The inner loop's update rule: which optimiser, and which step size a tensor takes in a step."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from perk.settings import InnerSettings
from perk.update_rule import UpdateRule

SIZES = [3, 2, 4]
DOCUMENTS = 2


def _random(seed: int) -> Tensor:
    return torch.randn(DOCUMENTS, sum(SIZES), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_each_tensor_moves_by_its_own_step_size(rule: Literal["rms", "adamw"]) -> None:
    update = UpdateRule(InnerSettings(rule=rule, weight_decay=0.0), SIZES)
    theta = _random(0)
    rates = torch.tensor([0.1, 0.0, 0.5])
    moved, _ = update.step(theta, _random(1), update.start(theta), rates.log(), 0)
    moves = (moved - theta).split(SIZES, dim=-1)
    for move, rate in zip(moves, rates, strict=True):
        # Both rules' first step has this root mean square.
        torch.testing.assert_close(move.square().mean(-1).sqrt(), rate.expand(DOCUMENTS), rtol=1e-4, atol=1e-6)


def test_the_rms_rule_remembers_nothing() -> None:
    update = UpdateRule(InnerSettings(rule="rms"), SIZES)
    assert update.start(_random(0)) is None
    _, moments = update.step(_random(0), _random(1), None, torch.zeros(3), 0)
    assert moments is None


def test_adamw_is_that_of_torch_over_several_steps() -> None:
    settings = InnerSettings(rule="adamw", weight_decay=0.1)
    update = UpdateRule(settings, SIZES)
    theta = _random(0)
    reference = theta.clone().requires_grad_()
    optimiser = torch.optim.AdamW([reference], lr=0.1, betas=settings.betas, weight_decay=0.1)
    moments = update.start(theta)
    for index in range(4):
        gradient = _random(index + 1)
        reference.grad = gradient
        optimiser.step()
        theta, moments = update.step(theta, gradient, moments, torch.full((3,), 0.1).log(), index)
    torch.testing.assert_close(theta, reference.detach())


@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_a_document_does_not_feel_the_others(rule: Literal["rms", "adamw"]) -> None:
    update = UpdateRule(InnerSettings(rule=rule), SIZES)
    theta, gradient, rates = _random(0), _random(1), torch.zeros(3)
    together, _ = update.step(theta, gradient, update.start(theta), rates, 0)
    for d in range(DOCUMENTS):
        alone, _ = update.step(theta[d : d + 1], gradient[d : d + 1], update.start(theta[d : d + 1]), rates, 0)
        torch.testing.assert_close(alone[0], together[d], rtol=0, atol=0)
