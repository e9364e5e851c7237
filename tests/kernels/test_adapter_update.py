"""One optimiser step over the flat buffers of D documents, with a step size per tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels import adamw_update, rms_update

BETAS = (0.9, 0.95)
DOCUMENTS = st.sampled_from([1, 3])
SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def _random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _leaves(documents: int, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Adapters, gradients and step sizes."""
    theta = _random(documents, sum(sizes), seed=0).requires_grad_()
    gradient = _random(documents, sum(sizes), seed=1).requires_grad_()
    step_sizes = _random(len(sizes), seed=2).exp().requires_grad_()
    return theta, gradient, step_sizes


@settings(max_examples=15, deadline=None)
@given(documents=DOCUMENTS, sizes=SIZES)
def test_the_rms_rule_and_both_its_derivatives_are_those_of_the_formula(documents: int, sizes: list[int]) -> None:
    theta, gradient, step_sizes = _leaves(documents, sizes)
    moved = rms_update(theta, gradient, step_sizes, sizes, epsilon=0.1)
    for d in range(documents):
        parts = zip(theta[d].split(sizes), gradient[d].split(sizes), step_sizes, strict=True)
        expected = [part - rate * g / (g.square().mean() + 0.1**2).sqrt() for part, g, rate in parts]
        torch.testing.assert_close(moved[d], torch.cat(expected))

    def apply(theta: Tensor, gradient: Tensor, step_sizes: Tensor) -> Tensor:
        return rms_update(theta, gradient, step_sizes, sizes, epsilon=0.1)

    assert gradcheck(apply, (theta, gradient, step_sizes))
    assert gradgradcheck(apply, (theta, gradient, step_sizes))


@settings(max_examples=15, deadline=None)
@given(documents=DOCUMENTS, sizes=SIZES, step=st.integers(1, 4))
def test_adamw_and_both_its_derivatives_are_those_of_the_formula(documents: int, sizes: list[int], step: int) -> None:
    theta, gradient, step_sizes = _leaves(documents, sizes)
    first = _random(documents, sum(sizes), seed=3).requires_grad_()
    second = _random(documents, sum(sizes), seed=4).square().requires_grad_()

    def apply(*leaves: Tensor) -> tuple[Tensor, ...]:
        theta, gradient, first, second, step_sizes = leaves
        moved, moments = adamw_update(
            theta, gradient, (first, second), step_sizes, sizes, step, betas=BETAS, weight_decay=0.1, epsilon=0.1
        )
        return moved, *moments

    leaves = (theta, gradient, first, second, step_sizes)
    moved, new_first, new_second = apply(*leaves)
    torch.testing.assert_close(new_first, 0.9 * first + 0.1 * gradient)
    torch.testing.assert_close(new_second, 0.95 * second + 0.05 * gradient**2)
    rates = step_sizes.repeat_interleave(torch.tensor(sizes))
    denominator = (new_second / (1 - 0.95**step) + 0.1**2).sqrt()
    torch.testing.assert_close(moved, theta - rates * (new_first / (1 - 0.9**step) / denominator + 0.1 * theta))
    assert gradcheck(apply, leaves)
    assert gradgradcheck(apply, leaves)


@pytest.mark.parametrize("documents", [1, 3])
def test_several_steps_of_adamw_are_torchs(documents: int) -> None:
    sizes = [3, 2, 4]
    rates = [0.1, 0.01, 0.2]
    theta = _random(documents, sum(sizes), seed=0)
    tensors = [part.clone().requires_grad_() for part in theta.split(sizes, dim=-1)]
    groups = [{"params": [tensor], "lr": rate} for tensor, rate in zip(tensors, rates, strict=True)]
    optimiser = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.1, eps=1e-12)
    moments = (torch.zeros_like(theta), torch.zeros_like(theta))
    for step in range(1, 5):
        gradient = _random(documents, sum(sizes), seed=step)
        for tensor, part in zip(tensors, gradient.split(sizes, dim=-1), strict=True):
            tensor.grad = part
        optimiser.step()
        theta, moments = adamw_update(
            theta,
            gradient,
            moments,
            torch.tensor(rates).double(),
            sizes,
            step,
            betas=BETAS,
            weight_decay=0.1,
            epsilon=1e-12,
        )
    torch.testing.assert_close(theta, torch.cat([tensor.detach() for tensor in tensors], dim=-1))


def test_a_step_of_the_rms_rule_is_as_long_as_its_step_size_says() -> None:
    theta, gradient, step_sizes = _leaves(3, [4, 6])
    # However large or small a tensor's gradient is.
    gradient = gradient * torch.tensor([1e-3] * 4 + [1e3] * 6)
    moves = (rms_update(theta, gradient, step_sizes, [4, 6], epsilon=1e-12) - theta).split([4, 6], dim=-1)
    for move, rate in zip(moves, step_sizes, strict=True):
        torch.testing.assert_close(move.square().mean(-1).sqrt(), rate.expand(3))


def test_where_the_gradient_is_zero_the_step_has_a_derivative() -> None:
    # A's gradient, while B is zero.
    zeros = torch.zeros(1, 5, dtype=torch.float64, requires_grad=True)
    theta, _, step_sizes = _leaves(1, [5])
    by_rms = rms_update(theta, zeros, step_sizes, [5], epsilon=1e-8)
    by_adamw, _ = adamw_update(
        theta, zeros, (zeros * 0, zeros * 0), step_sizes, [5], 1, betas=BETAS, weight_decay=0.0, epsilon=1e-8
    )
    for moved in (by_rms, by_adamw):
        torch.testing.assert_close(moved, theta)
        (derivative,) = torch.autograd.grad(moved.sum(), zeros)
        torch.testing.assert_close(derivative, -step_sizes.detach().expand(1, 5) / 1e-8)


def test_sizes_that_do_not_add_up_are_an_error() -> None:
    theta, gradient, _ = _leaves(1, [5])
    with pytest.raises(ValueError, match="sizes: add up to 4, and theta has 5 elements"):
        rms_update(theta, gradient, torch.ones(2).double(), [2, 2], epsilon=1e-8)
