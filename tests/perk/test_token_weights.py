"""The learned weight of a token: positive, equal at the start, blind to the scale of a base's states."""

from __future__ import annotations

import math

import pytest
import torch

from perk.token_weights import TokenWeighting


def _trained() -> TokenWeighting:
    weighting = TokenWeighting(hidden_size=6, inner_size=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in weighting.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return weighting


def test_before_training_all_tokens_weigh_the_same() -> None:
    weights = TokenWeighting(hidden_size=6, inner_size=4)(torch.randn(2, 5, 6))
    torch.testing.assert_close(weights, torch.full((2, 5), math.log(2) / 3))


def test_weights_are_positive_and_differ_after_training() -> None:
    weights = _trained()(torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(1)))
    assert weights.shape == (2, 50)
    assert (weights > 0).all()
    assert weights.std() > 0.1


def test_the_scale_of_the_states_does_not_matter() -> None:
    weighting, states = _trained(), torch.randn(5, 6)
    torch.testing.assert_close(weighting(1000 * states), weighting(states), rtol=1e-3, atol=1e-5)


def test_every_parameter_learns() -> None:
    weighting = _trained()
    weighting(torch.randn(5, 6)).sum().backward()
    for name, parameter in weighting.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_its_tensors_make_the_same_weighting() -> None:
    trained, other = _trained(), TokenWeighting(hidden_size=6, inner_size=4)
    other.load_tensors(trained.named_tensors())
    states = torch.randn(5, 6)
    torch.testing.assert_close(other(states), trained(states), rtol=0, atol=0)


def test_a_missing_tensor_is_named() -> None:
    tensors = _trained().named_tensors()
    del tensors["token_weighting.down.bias"]
    with pytest.raises(KeyError, match=r"token_weighting\.down\.bias"):
        _trained().load_tensors(tensors)
